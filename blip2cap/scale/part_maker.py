"""The part of an actor that knows blip2cap: it checks its node, loads the model and makes parts. It knows no Ray.

One thread makes parts; another answers `report` and `stop` meanwhile.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace

from blip2cap import urls
from blip2cap.engine.run import Engine, RunStats
from blip2cap.errors import Blip2CapError, ImageError, InputError, ModelError, OutputError
from blip2cap.jobs.parts import PartResult, run_part
from blip2cap.models.base import Checkpoint
from blip2cap.models.checkpoint import find
from blip2cap.models.registry import load
from blip2cap.outputs.parts.counts import done_parts
from blip2cap.outputs.parts.part import sweep
from blip2cap.outputs.parts.plan import PartsPlan, read_plan
from blip2cap.outputs.parts.store import open_store
from blip2cap.records import ImageRef
from blip2cap.scale.events import Assignment, Progress, Work

_SHARED = "A folder must be on a disk that all nodes have mounted under the same path; or use a bucket, s3://..."


class PartMaker:
    """Makes parts of one job in this process. Raises Blip2CapError, whose message does not name the node."""

    def __init__(self, work: Work, *, num_threads: int) -> None:
        job = work.job
        self._lock = threading.Lock()
        self._stats, self._stopped = RunStats(), False
        self._failures: list[tuple[str, str, str]] = []
        self._lines: list[str] = []
        _check_inputs(work)
        self.plan = _find_plan(work)
        self.plan.store.prepare()
        if not self.plan.store.shared:  # journals of parts that others have finished since
            sweep(self.plan.store, self.plan, done_parts(self.plan.store, self.plan))
        model = load(_find_checkpoint(work), job.model)
        job.task.check(model)
        self.retry_only = job.output.retry_only
        decode = job.decode.on_cores(num_threads)
        self.engine = Engine(
            model=model,
            task=job.task,
            decode=decode,
            batch=job.batch,
            size=job.batch.images(),  # measured once, not in every part
            on_failure=self._fail,
            say=self._say,
        )
        self.line = f"{work.checkpoint.name}: {job.model.dtype} on {model.device}"
        """Description of the loaded model."""

    def make(self, assignment: Assignment) -> PartResult:
        """Make a part; return early after `stop`."""
        self._note(RunStats())
        engine = self.engine
        if assignment.isolate and not engine.decode.isolate:
            engine = replace(engine, decode=replace(engine.decode, isolate=True))
        return run_part(
            engine,
            self.plan.store,
            self.plan,
            assignment.index,
            again=assignment.again,
            retry_only=self.retry_only,
            say=self._say,
            on_batch=self._note,
            stopped=lambda: self._stopped,
        )

    def report(self) -> Progress:
        """Return the counts of the current part, and what has been said since the last report."""
        with self._lock:
            failures, lines = self._failures, self._lines
            self._failures, self._lines = [], []
            return Progress(stats=self._stats, failures=failures, lines=lines)

    def stop(self) -> None:
        """Stop after the current batch."""
        self._stopped = True

    def _note(self, stats: RunStats) -> None:
        with self._lock:
            self._stats = RunStats() + stats  # a copy: the engine goes on counting

    def _fail(self, ref: ImageRef, error: ImageError) -> None:
        with self._lock:
            self._failures.append((ref.name, error.code, error.detail))

    def _say(self, line: str) -> None:
        with self._lock:
            self._lines.append(line)


def _check_inputs(work: Work) -> None:
    """Raise InputError if the images are not on this node; else each of them would become a failed row."""
    missing = work.folder
    try:
        if work.folder is not None:
            os.chdir(work.folder)
        if work.sample is not None:
            missing = os.path.dirname(os.path.join(work.folder or "", work.sample.path))
            os.stat(missing)
    except OSError as error:
        raise InputError(f"does not see the images: {missing}: {error.strerror}. {_SHARED}") from error


def _find_plan(work: Work) -> PartsPlan:
    out = work.job.output.out
    try:
        plan = read_plan(open_store(out))
    except Blip2CapError as error:
        raise type(error)(f"cannot read --out: {error.message}") from error
    if plan is None or plan.id != work.plan_id:
        found = "no plan" if plan is None else "another plan"
        where = "The credentials of the bucket must be those of the driver." if urls.scheme(out) else _SHARED
        raise OutputError(f"does not see --out: there is {found} in {out}. {where}")
    return plan


def _find_checkpoint(work: Work) -> Checkpoint:
    given, options = work.checkpoint, work.job.model
    try:
        found = find(options, quiet=True)
    except Blip2CapError as error:
        raise type(error)(f"cannot find the model: {error.message} {_SHARED}") from error
    if found.commit != given.commit:
        raise ModelError(
            f"has other files for --model {options.name}: {found.commit}, expected {given.commit}. Copy the folder "
            "again, or give the commit with --revision."
        )
    return found
