"""One run into a folder of parts: one process, or many that share the folder.

Parts go through the same model one after the other, and images are decoded ahead across their borders, so the model
never waits for a part to end. `run_part` makes a single part, for the scheduler of a cluster.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blip2cap import urls
from blip2cap.errors import Blip2CapError, InputError, OutputError, OutputRefusedError
from blip2cap.jobs.context import Context, make_context
from blip2cap.jobs.job import DryRun, Job, Listener, Outcome, Parts, count_requests, no_image
from blip2cap.jobs.part_queue import PartQueue
from blip2cap.models.base import Checkpoint, Model
from blip2cap.outputs.parts.counts import Counts, done_parts, read_counts, stray_files, total
from blip2cap.outputs.parts.part import sweep
from blip2cap.outputs.parts.plan import PART_SIZE, PartsPlan, check_ref, labels_setting, make_plan, read_plan
from blip2cap.outputs.parts.store import Store, open_store
from blip2cap.outputs.read import ignored_message
from blip2cap.source.inputs import Source
from blip2cap.tasks.base import Worklist

if TYPE_CHECKING:
    from blip2cap.engine.run import RowMaker, RunStats

_LOOK_AGAIN_S = 1.0
"""First pause while other processes have the last parts locked; doubled as long as none of them is free."""
_MOST_LOOK_AGAIN_S = 30.0
_PLANNED = ("inputs", "files_from", "null_separated", "limit", "include", "exclude", "image_column")
"""Fields of SourceOptions that decide which inputs are listed. A fixed list: a plan must not depend on fields that a
later release adds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartsWork:
    """The parts that a run has to make in a folder, and those that exist, before it is decided who makes them."""

    context: Context
    plan: PartsPlan
    mine: Set[int]
    """Parts that belong to this run; --shard leaves out others."""
    done: Set[int]
    """All parts that existed, those of other shards too."""
    before: Mapping[int, Counts]
    """Counts of those of this run that existed."""
    todo: Sequence[int]
    """Parts to make, in this order."""
    again: Set[int]
    """Those of them that exist, and whose failed rows are retried."""
    num_retried: int
    """Number of these rows."""
    damaged: Sequence[str]
    """Messages about archives that could not be read completely."""

    @property
    def num_images(self) -> int:
        """Number of images to do."""
        return sum(map(self.plan.num_refs, self.mine - self.before.keys())) + _num_images(self.plan, self.num_retried)

    @property
    def dtype(self) -> str:
        """Dtype that was given, or else that of the plan: all its texts have one dtype."""
        return _dtype(self.context, self.plan)


def run_parts_job(
    job: Job, source: Source, *, listener: Listener | None, stopped: Callable[[], bool], model: Model | None
) -> Outcome:
    """Run a job whose output is a folder of parts. Raises Blip2CapError."""
    work = prepare_parts(job, source, listener=listener, stopped=stopped, model=model)
    store, retry_only = work.plan.store, work.context.job.output.retry_only
    queue = PartQueue(store, work.plan, work.todo, work.again, retry_only, work.context.listener.say)
    stats = _make_parts(work, queue) if queue.todo else None
    return finish_parts(work, stats, num_found=queue.num_found, num_lost=queue.num_lost)


def prepare_parts(
    job: Job,
    source: Source,
    *,
    listener: Listener | None,
    stopped: Callable[[], bool],
    model: Model | None = None,
    automatic_dtype: Callable[[Context], str] | None = None,
) -> PartsWork:
    """Find or make the plan, and decide which parts to make. Raises Blip2CapError.

    `automatic_dtype` chooses the dtype `auto` of a new plan; if left out, it is chosen for this machine.
    """
    store = open_store(job.output.out)
    plan = read_plan(store)
    context = make_context(job, listener=listener, stopped=stopped, model=model, source=source)
    job, damaged = context.job, list[str]()
    settings = context.settings | _settings_of_parts(job, source)
    if plan is not None:
        _check(context, plan, settings)
    store.prepare()
    if plan is None:
        plan, damaged = _make_plan(context, store, settings, automatic_dtype)
        _check(context, plan, settings)  # it may be the plan of another process
    else:
        _say_plan(context, plan)

    mine = {index for index in range(plan.num_parts) if job.output.takes(index)}
    done = done_parts(store, plan)
    before = read_counts(store, plan, sorted(mine & done))
    sweep(store, plan, done)
    retried = {index: num for index, counts in before.items() if (num := job.output.num_retried(counts.failed))}
    return PartsWork(
        context=context,
        plan=plan,
        mine=mine,
        done=done,
        before=before,
        todo=_in_turn(store, job, sorted(mine - done)) + sorted(retried),
        again=retried.keys(),
        num_retried=sum(retried.values()),
        damaged=damaged,
    )


def finish_parts(
    work: PartsWork,
    stats: RunStats | None,
    *,
    num_found: int = 0,
    num_lost: int = 0,
    error: Blip2CapError | None = None,
) -> Outcome:
    """Count the parts after a run; `stats` is None if there was nothing to do.

    `num_found` is the number of rows that unfinished parts had, `num_lost` that of parts that others finished first,
    `error` why parts are missing.
    """
    context, plan, existing = work.context, work.plan, total(work.before.values())
    store = plan.store
    done = done_parts(store, plan) if stats is not None else work.done
    is_stopped = stats is not None and context.stopped()
    num_failed = 0
    if not is_stopped and error is None:
        try:
            sweep(store, plan, done)
            num_failed = _num_failed(store, plan, work.mine, work.before, work.again)
        except (OutputError, OutputRefusedError) as problem:
            error = problem
    return Outcome(
        out=context.out,
        num_images=sum(map(plan.num_refs, work.mine)),
        num_rows_before=existing.num_rows - work.num_retried + num_found,
        num_failed_before=existing.num_failed - work.num_retried,
        skipped=plan.skipped,  # by the process that listed the inputs
        damaged=tuple(work.damaged),
        stats=stats,
        stopped=is_stopped,
        parts=Parts(
            num_parts=len(work.mine),
            num_existing=len(done & work.mine),
            num_lost=num_lost,
            num_failed=num_failed,
        ),
        error=error,
    )


def _num_failed(store: Store, plan: PartsPlan, mine: Set[int], before: Mapping[int, Counts], again: Set[int]) -> int:
    """Count the failed rows of all parts, those made by other processes too."""
    unchanged = {index: counts for index, counts in before.items() if index not in again}
    made = read_counts(store, plan, sorted(mine - unchanged.keys()))
    return total((*unchanged.values(), *made.values())).num_failed


def _num_images(plan: PartsPlan, num_rows: int) -> int:
    """Return how many images a number of rows is about, on average."""
    return round(num_rows * plan.num_images / plan.num_rows) if plan.num_rows else 0


def _settings_of_parts(job: Job, source: Source) -> dict[str, Any]:
    """Return the settings of a plan that change no result: the listed inputs, and the rows of each."""
    options = {name: getattr(job.source, name) for name in _PLANNED}
    if [source.root] == [os.path.realpath(given) for given in job.source.inputs]:
        options["inputs"] = ()  # the single folder, which `input_root` names
    for name in ("inputs", "files_from"):
        options[name] = tuple(map(_without_secrets, options[name]))
    label = job.task.schema.key
    labels = job.task.labels if label else None
    settings: dict[str, Any] = {labels_setting(label): None if labels is None else list(labels)}
    settings |= job.task.labels_settings()
    for name, value in options.items():
        settings[name] = [_text(each) for each in value] if isinstance(value, tuple) else value
    return settings


def _without_secrets(given: str) -> str:
    """Return the name of an input for settings that others may read: secrets in a URL are replaced by a hash."""
    if urls.scheme(given) and not urls.is_http(given):
        return given.rstrip("/")  # the same folder with and without a slash at the end
    shown = urls.shown(given)
    return given if shown == given else f"{shown} #{hashlib.sha256(os.fsencode(given)).hexdigest()[:8]}"


def _text(value: object) -> object:
    return os.fsencode(value).decode("utf-8", "backslashreplace") if isinstance(value, str) else value


def _dtype(context: Context, plan: PartsPlan) -> str:
    """Return the dtype that was given, or else that of the plan: all its texts have one dtype."""
    return str(plan.manifest.settings["dtype"]) if context.dtype == "auto" else context.dtype


def _check(context: Context, plan: PartsPlan, settings: Mapping[str, Any]) -> None:
    """Raise OutputRefusedError if the plan was made with other settings."""
    plan.check({**settings, "dtype": _dtype(context, plan)}, context.out)


def choose_dtype(job: Job, checkpoint: Checkpoint) -> str:
    """Return the dtype that `auto` stands for on this machine; `auto` again for a server. Imports torch else."""
    if checkpoint.server:
        return "auto"
    from blip2cap.models import device

    chosen = device.choose_dtype("auto", device.choose_device(job.model.device), checkpoint)
    return str(chosen).removeprefix("torch.")


def _make_plan(
    context: Context, store: Store, settings: Mapping[str, Any], automatic_dtype: Callable[[Context], str] | None
) -> tuple[PartsPlan, list[str]]:
    """List all inputs, as the first process does; return the plan and messages on damaged archives."""
    job, dtype = context.job, context.dtype
    if dtype == "auto":
        dtype = automatic_dtype(context) if automatic_dtype else choose_dtype(job, context.checkpoint)
    num_labels = len(job.task.labels or (None,))  # a part is held in memory, with all rows of an input
    context.listener.say("listing the inputs ...")
    stream = context.source.stream()
    plan = make_plan(
        store,
        stream,
        {**settings, "dtype": dtype},
        part_size=job.output.part_size or max(1, job.task.schema.num_rows(PART_SIZE) // num_labels),
        skipped=stream.skipped,
        labels_of=job.task.labels_of if job.task.labels is None else None,
    )
    if plan is None:
        raise InputError(no_image(context.source, stream.skipped, job.task))
    context.listener.say(f"{context.out}: planned {_size(plan)}")
    return plan, stream.damaged


def _say_plan(context: Context, plan: PartsPlan) -> None:
    created = plan.manifest.created.replace("T", " ").removesuffix("+00:00")
    say, part_size = context.listener.say, context.job.output.part_size
    say(f"{context.out}: {_size(plan)}, as listed {created} UTC; inputs added later need another --out")
    if part_size not in (None, plan.part_size):
        say(f"--part-size {part_size}: has no effect: the parts are already planned")
    if strays := stray_files(plan.store, plan):
        say(ignored_message(context.out, strays))


def _size(plan: PartsPlan) -> str:
    return f"{plan.num_images} images in {plan.num_parts} part{'s' if plan.num_parts != 1 else ''}"


def _in_turn(store: Store, job: Job, missing: Sequence[int]) -> list[int]:
    """Order parts. In a bucket, locks of other processes are not visible, so each process starts at a random part."""
    if not store.shared or not missing or job.output.shard is not None:
        return list(missing)
    first = secrets.randbelow(len(missing))
    return [*missing[first:], *missing[:first]]


def _make_parts(work: PartsWork, queue: PartQueue) -> RunStats:
    """Load the model and make all parts of the queue."""
    context = work.context
    context.announce_model()
    from blip2cap.jobs.makers import make_maker
    from blip2cap.workers.devices import LARGE

    with closing(queue), closing(make_maker(context, work.dtype, lambda: work.num_images >= LARGE)) as maker:
        maker.load()
        with context.running(lambda given_up: work.num_images):
            images = maker.read_ahead(queue.requests(), queue)  # not sooner: no part is open if loading fails
            return run_parts(maker, queue, images, context.listener.progress, context.stopped)


def run_parts(
    maker: RowMaker,
    queue: PartQueue,
    images: Any,
    on_batch: Callable[[RunStats], None] = lambda stats: None,
    stopped: Callable[[], bool] = lambda: False,
) -> RunStats:
    """Make all parts of a queue, decoding images ahead; wait for parts that other processes have locked.

    If a process dies, the others take over its part. Ends early, after the images in the model are complete, once
    `stopped` returns True.
    """
    from blip2cap.engine.run import RunStats, run

    before, wait_s = RunStats(), _LOOK_AGAIN_S

    def tell(stats: RunStats) -> None:
        on_batch(before + stats)

    while True:
        with closing(queue):
            stats = run(maker, images, queue, tell, stopped)
        if stopped() or not queue.locked:
            return before + stats
        queue.restart()
        wait_s = _LOOK_AGAIN_S if stats.num_images else min(2 * wait_s, _MOST_LOOK_AGAIN_S)
        wait_until = time.monotonic() + wait_s
        while time.monotonic() < wait_until and not stopped():
            time.sleep(0.05)
        before, images = before + stats, maker.read_ahead(queue.requests(), queue)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartResult:
    """Result of an attempt to make one part."""

    stats: RunStats
    num_found: int
    """Number of rows that earlier attempts had left."""
    num_lost: int
    """1 if another process finished the part first."""
    locked: bool
    """True if another process is making the part, so nothing was done."""


def run_part(
    maker: RowMaker,
    store: Store,
    plan: PartsPlan,
    index: int,
    *,
    again: bool = False,
    retry_only: Collection[str] = (),
    say: Callable[[str], None] = lambda line: None,
    on_batch: Callable[[RunStats], None] = lambda stats: None,
    stopped: Callable[[], bool] = lambda: False,
) -> PartResult:
    """Make one part in this process, from its inputs to its object; do nothing if it exists or another process has it.

    With `again`, retry the failed rows of an existing part. Ends early once `stopped` returns True.
    """
    from blip2cap.engine.run import run

    with closing(PartQueue(store, plan, (index,), {index} if again else frozenset(), retry_only, say)) as queue:
        stats = run(maker, maker.read_ahead(queue.requests(), queue), queue, on_batch, stopped)
        return PartResult(stats=stats, num_found=queue.num_found, num_lost=queue.num_lost, locked=bool(queue.locked))


def dry_run_parts(job: Job, source: Source) -> DryRun:
    """Return what a run would do, without loading a model or writing."""
    store = open_store(job.output.out)
    plan = read_plan(store)
    if plan is None:
        store.check()
        stream, worklist = source.stream(), Worklist(job.task)
        return count_requests(job, source, stream, worklist, worklist.requests(map(check_ref, stream), frozenset()))
    known = job.known_settings(source) | _settings_of_parts(job, source)
    plan.check({**plan.manifest.settings, **known}, job.output.out)
    mine = {index for index in range(plan.num_parts) if job.output.takes(index)}
    counts = read_counts(store, plan, sorted(mine & done_parts(store, plan)))
    existing = total(counts.values())
    num_retried = job.output.num_retried(existing.failed)
    num_images_to_do = sum(plan.num_refs(index) for index in mine - counts.keys())
    return DryRun(
        out=job.output.out,
        num_images=sum(map(plan.num_refs, mine)),
        num_images_to_do=num_images_to_do + _num_images(plan, num_retried),
        num_rows_to_do=sum(map(plan.num_rows_of, mine - counts.keys())) + num_retried,
        num_rows_before=existing.num_rows - num_retried,
        num_failed_before=existing.num_failed - num_retried,
        skipped=plan.skipped,
        damaged=(),
    )
