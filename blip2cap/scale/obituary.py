"""Why an actor has ended: what Ray knows, and the last lines that its process wrote to stderr."""

from __future__ import annotations

import re
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


def obituary(ray: ModuleType, error: Exception, *, node: str, node_id: str, stderr: str) -> tuple[str, bool]:
    """Return why an actor has ended, and whether its node has gone too."""
    if isinstance(error, ray.exceptions.RayTaskError):  # a traceback of Python: the process itself still runs
        return f"On node {node}, an error in Python: {' | '.join(last_lines(str(error)))}", False
    if node_id and not any(each["NodeID"] == node_id and each["Alive"] for each in ray.nodes()):
        return f"Node {node} has gone.", True
    cause = cause_of(str(error))
    lines = last_lines(_read_there(ray, node_id, stderr)) if node_id and stderr else []
    said = f" Last lines of its stderr: {' | '.join(lines)}" if lines else ""  # messages are one line
    return f"On node {node}: {cause}{said}", False


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


def _read_there(ray: ModuleType, node_id: str, path: str) -> str:
    """Read the end of a file on a node."""
    num_bytes = _TAIL_BYTES  # a node may have no blip2cap, and so must not need this module

    def read() -> str:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - num_bytes))
            return file.read().decode("utf-8", "replace")

    there: Any = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(read)
    try:
        return str(ray.get(task.remote(), timeout=_PATIENCE_S))
    except (ray.exceptions.RayError, OSError):
        return ""
