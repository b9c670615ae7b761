"""One run into a folder of parts: one process, or many that share the folder.

Parts go through the same model one after the other, and images are decoded ahead across their borders, so the model
never waits for a part to end. `run_part` makes a single part, for the scheduler of a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blip2cap.errors import Blip2CapError, OutputError, OutputRefusedError
from blip2cap.jobs.job import DryRun, Job, Listener, Outcome, Parts, count_requests
from blip2cap.jobs.part_queue import PartQueue
from blip2cap.jobs.parts_plan import PartsWork, num_images_of, prepare_parts, settings_of_parts
from blip2cap.models.base import Model
from blip2cap.outputs.parts.counts import Counts, done_parts, read_counts, total
from blip2cap.outputs.parts.part import sweep
from blip2cap.outputs.parts.plan import PartsPlan, check_ref, read_plan
from blip2cap.outputs.parts.store import Store, open_store
from blip2cap.source.inputs import Source
from blip2cap.tasks.base import Worklist

if TYPE_CHECKING:
    from blip2cap.engine.run import RowMaker, RunStats

_LOOK_AGAIN_S = 1.0
"""First pause while other processes have the last parts locked; doubled as long as none of them is free."""
_MOST_LOOK_AGAIN_S = 30.0


def run_parts_job(
    job: Job, source: Source, *, listener: Listener | None, stopped: Callable[[], bool], model: Model | None
) -> Outcome:
    """Run a job whose output is a folder of parts. Raises Blip2CapError."""
    work = prepare_parts(job, source, listener=listener, stopped=stopped, model=model)
    store, retry_only = work.plan.store, work.context.job.output.retry_only
    queue = PartQueue(store, work.plan, work.todo, work.again, retry_only, work.context.listener.say)
    stats = _make_parts(work, queue) if queue.todo else None
    return finish_parts(work, stats, num_found=queue.num_found, num_lost=queue.num_lost)


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
    known = job.known_settings(source) | settings_of_parts(job, source)
    plan.check({**plan.manifest.settings, **known}, job.output.out)
    mine = {index for index in range(plan.num_parts) if job.output.takes(index)}
    counts = read_counts(store, plan, sorted(mine & done_parts(store, plan)))
    existing = total(counts.values())
    num_retried = job.output.num_retried(existing.failed)
    num_images_to_do = sum(plan.num_refs(index) for index in mine - counts.keys())
    return DryRun(
        out=job.output.out,
        num_images=sum(map(plan.num_refs, mine)),
        num_images_to_do=num_images_to_do + num_images_of(plan, num_retried),
        num_rows_to_do=sum(map(plan.num_rows_of, mine - counts.keys())) + num_retried,
        num_rows_before=existing.num_rows - num_retried,
        num_failed_before=existing.num_failed - num_retried,
        skipped=plan.skipped,
        damaged=(),
    )
