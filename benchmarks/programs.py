"""The programs that a suite measures: ours in a process that keeps its model loaded, and peers as a user starts them.

One at a time: a peer has the machine to itself. Programs that exceed the time of the suite are stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.measure import Facts, Job, serve
from blip2cap.bench.programs import ProgramError, run_peer, why
from blip2cap.cli import main as set_spin_count
from blip2cap.options import ModelOptions

ROOT = Path(__file__).resolve().parent.parent
_END_S = 20.0
"""Time for a process to end by itself."""


class Programs:
    """Runs programs; `left_s` returns the time for one that starts now."""

    def __init__(self, left_s: Callable[[], float]) -> None:
        self.left_s = left_s
        self.worker: Worker | None = None

    def ours(self, model: ModelOptions, job: Job) -> Facts:
        """Measure a job. The model stays loaded until another one, or a peer, is needed, or a job fails."""
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
        """Run a script that prints one JSON object; return it."""
        self.close()
        facts: Facts = run_peer(module, options, timeout_s=self.left_s(), cwd=ROOT)
        facts.pop("versions", None)  # those of the suite
        return facts

    def close(self) -> None:
        """End the process that measures ours, and wait until its memory is free."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None


class Worker:
    """A process that measures ours with one model; see `measure.serve`."""

    def __init__(self, model: ModelOptions) -> None:
        set_spin_count()  # as the command line does; torch reads it when the process imports it
        self.model = model
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, model), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, job: Job, timeout_s: float) -> Facts:
        """Measure a job. Raises ProgramError, also if it takes too long; then the process is of no more use."""
        try:
            self.connection.send(job)
            if not self.connection.poll(timeout_s):
                self.process.kill()
                raise ProgramError(f"no result after {timeout_s:.0f} s")
            answer: Facts = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise ProgramError(why(self.process.exitcode or 0)) from None
        if "error" in answer:
            raise ProgramError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join(_END_S)
        self.process.kill()
        self.process.join()
        self.process.close()
