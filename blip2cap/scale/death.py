"""Why an actor has died: what Ray knows, and the last lines that its process wrote to stderr."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

_NUM_LINES = 8
_TAIL_BYTES = 16_384
_PATIENCE_S = 20.0
"""Time limit for reading a file on another node."""
_LINES_OF_RAY = re.compile(
    r":(job_id|actor_name|task_name):|\[.*\] logging\.cc|Extension modules:|\*\*\* SIG|PC: @|\s*@ |.*/ray/_private/"
)
_ADVICE = re.compile(r"\s*Some common causes include.*", re.DOTALL)


@dataclass(kw_only=True, slots=True)
class Death:
    """The end of an actor."""

    cause: str
    node_lost: bool = False
    """True if its node has gone too."""
    reading: Any = None
    """Reference to the last lines of its stderr, which are being read on its node; None if there are none to read."""
    until: float = 0.0
    """Time at which reading is given up."""

    def report(self, stderr: str = "") -> str:
        """Return what is known, in one line."""
        lines = last_lines(stderr)
        return self.cause + (f" Last lines of its stderr: {' | '.join(lines)}" if lines else "")


def find_death(ray: ModuleType, error: Exception, *, node: str, node_id: str, stderr: str) -> Death:
    """Return what is known about the death of an actor, and start to read its `stderr`, a file on its node."""
    if isinstance(error, ray.exceptions.RayTaskError):  # a traceback of Python: the process itself still runs
        return Death(cause=f"On node {node}, an error in Python: {' | '.join(last_lines(str(error)))}")
    if node_id and not any(each["NodeID"] == node_id and each["Alive"] for each in ray.nodes()):
        return Death(cause=f"Node {node} has gone.", node_lost=True)
    reading = _read_there(ray, node_id, stderr) if node_id and stderr else None
    return Death(cause=f"On node {node}: {cause_of(str(error))}", reading=reading, until=time.monotonic() + _PATIENCE_S)


def finish_report(ray: ModuleType, death: Death) -> str:
    """Return what is known, once `reading` is complete or after its time limit."""
    if death.reading is None:
        return death.report()
    try:
        return death.report(str(ray.get(death.reading, timeout=max(0.0, death.until - time.monotonic()))))
    except (ray.exceptions.RayError, OSError):
        return death.report()


def cause_of(message: str) -> str:
    """Return what a message of Ray about a dead actor says of the cause, without its list of guesses."""
    paragraphs = [line.strip() for line in _ADVICE.sub("", message).splitlines() if line.strip()]
    # The first line says only that the actor died; lines of its ids follow.
    known = [line for line in paragraphs[1:] if not re.match(r"\w+: \S+$", line)] or paragraphs
    return " ".join(known)


def last_lines(text: str) -> list[str]:
    """Return the last lines of a process, without those of Ray; after a crash of C code, those that explain it."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _LINES_OF_RAY.match(line)]
    crash = next((number for number, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    return lines[-_NUM_LINES:] if crash is None else lines[max(0, crash - 2) : crash - 2 + _NUM_LINES]


def _read_there(ray: ModuleType, node_id: str, path: str) -> Any:
    """Start to read the end of a file on a node; return a reference to it."""
    num_bytes = _TAIL_BYTES  # a node may have no blip2cap, and so must not need this module

    def read() -> str:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - num_bytes))
            return file.read().decode("utf-8", "replace")

    there: Any = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(read).remote()
