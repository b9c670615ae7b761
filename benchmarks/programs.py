"""The programs that a suite measures: ours in a process that keeps its model loaded, and peers as a user starts them.

One at a time: a peer has the machine to itself. Programs that outlast the time of the suite are ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from benchmarks.suite import Facts, SkipError
from blip2cap.cli import SPIN_COUNT

ROOT = Path(__file__).resolve().parent.parent
_SPIN = "GOMP_SPINCOUNT"
_END_S = 20.0
"""A process that was told to end has so long."""


class ProgramError(Exception):
    """A program ended, or was ended, without a result."""


class Programs:
    """Runs programs; `left_s` says how long one that begins now may take."""

    def __init__(self, left_s: Callable[[], float]) -> None:
        self.left_s = left_s
        self.worker: Worker | None = None

    def ours(self, model: Facts, job: Facts) -> Facts:
        """Have a job measured, see `measure.Job`; `model` are the values of `ModelOptions`.

        The model stays loaded until another one, or a peer, is asked for, or a job fails.
        """
        timeout_s = self.left_s()
        if self.worker is None or self.worker.model != model:
            self.close()
            self.worker = Worker(model)
        try:
            return self.worker.ask(job, timeout_s)
        except ProgramError:
            self.close()
            raise

    def peer(self, module: str, **options: Any) -> Facts:
        """Run a script that prints one JSON object; return it. True stands for a flag, a list for a repeated option."""
        self.close()
        command = [sys.executable, "-m", module, "--json", *flags(options)]
        timeout_s = self.left_s()
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment(ours=False),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ProgramError(f"no result after {timeout_s:.0f} s") from None
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            raise ProgramError(why(done.returncode, done.stderr))
        facts: Facts = json.loads(lines[-1])
        if "skipped" in facts:
            raise SkipError(facts["skipped"])
        facts.pop("versions", None)  # those of the suite
        return facts

    def close(self) -> None:
        """End the process that measures ours, and wait until its memory is free."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None


class Worker:
    """A process that measures ours with one model, `benchmarks/measure.py`."""

    def __init__(self, model: Facts) -> None:
        self.model = model
        self.errors: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in `close`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.measure", json.dumps(model)],
            cwd=ROOT,
            env=environment(ours=True),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.listener = threading.Thread(target=self._listen, name="answers", daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")  # it has ended

    def ask(self, job: Facts, timeout_s: float) -> Facts:
        """Have a job measured. Raises ProgramError, also if it takes too long; then the process is of no more use."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        try:
            line = self.answers.get(timeout=timeout_s)
        except queue.Empty:
            self.process.kill()
            raise ProgramError(f"no result after {timeout_s:.0f} s") from None
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            raise ProgramError(why(code, self.errors.read()))
        answer: Facts = json.loads(line)
        if "error" in answer:
            raise ProgramError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.join()
        self.process.stdout.close()
        self.errors.close()


def environment(*, ours: bool) -> dict[str, str]:
    """Return the variables that a program gets: ours what the command line sets for itself, a peer what a user has."""
    found = {name: value for name, value in os.environ.items() if ours or name != _SPIN}
    found["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [found.get("PYTHONPATH")])])
    if ours and "OMP_WAIT_POLICY" not in found:
        found.setdefault(_SPIN, SPIN_COUNT)
    return found


def flags(options: Facts) -> list[str]:
    """Write options as a command line does."""
    found = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            found.append(flag)
        else:
            found += [f"{flag}={one}" for one in (value if isinstance(value, list) else [value])]
    return found


def why(code: int, stderr: str) -> str:
    """Say in one line why a process gave no result."""
    if code < 0:
        return f"ended by signal {-code}" + (": out of memory?" if code == -9 else "")
    lines = stderr.strip().splitlines()
    return lines[-1][:300] if lines else f"ended with code {code} and no result"
