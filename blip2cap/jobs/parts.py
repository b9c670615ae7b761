"""The loop over the parts of a parts folder: one process, or many that share it.

Parts come one after the other through the same model, and images are decoded ahead across their borders: nothing waits
for a part to end. `run_part` does a single one, which is what a cluster's scheduler hands out.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from blip2cap.batch_size import BatchSize
from blip2cap.engine.run import Engine, ReadAhead, RunStats, run
from blip2cap.errors import ImageError, OutputRefusedError
from blip2cap.options import BatchOptions, DecodeOptions
from blip2cap.outputs.parts.part import Part, is_locked, is_there
from blip2cap.outputs.parts.plan import PartsPlan
from blip2cap.outputs.parts.store import Store
from blip2cap.records import Row
from blip2cap.tasks.worklist import Request, Worklist

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from blip2cap.engine.flow import Item

_LOOK_AGAIN_S = 1.0
"""While other processes have the last parts in work; twice as long each time that nothing was to be had."""
_MOST_LOOK_AGAIN_S = 30.0


class PartQueue:
    """The tasks of several parts in one stream, and the sink that their rows come back to.

    A part is locked when its first task is wanted, and becomes an object when its last row is written. Tasks are asked
    for in a thread of their own, rows come in the order of the tasks.
    """

    def __init__(self, store: Store, parts: PartsPlan, plan: Worklist, indices: Iterable[int], again: Set[int]) -> None:
        self.store, self.parts, self.plan = store, parts, plan
        self.again = again
        """Parts that are there, whose failed rows are to be made anew."""
        self.todo = deque(indices)
        self.dangerous: deque[int] = deque()
        """Parts that came up and are to be done one image at a time."""
        self.locked: deque[int] = deque()
        """Parts that came up while another process had them in work."""
        self.num_lost = 0
        """Parts that another process has finished first."""
        self.num_found = 0
        """Rows of unfinished parts that were there when they came up."""
        self._open: deque[Part] = deque()
        self._closed, self._lock = False, threading.Lock()
        self.finished: set[str] = set()
        self.num_failed = 0

    def requests(self) -> Iterator[Request]:
        """Yield what is missing of one part after the other."""
        while self.todo:
            part = self.claim(self.todo.popleft())
            if part is None:
                continue
            if part.is_dangerous:
                part.close()
                self.dangerous.append(part.index)
                continue
            self.num_found += part.num_found
            with self._lock:
                if self._closed:  # while a slow bucket answered
                    part.close()
                    return
                self._open.append(part)
            yield from self.plan.requests(part.refs, part.finished)

    def claim(self, index: int) -> Part | None:
        """Take a part into work; None if there is nothing to do, or if another process is at it, which is noted."""
        try:
            return Part(self.store, self.parts, index, again=index in self.again)
        except OutputRefusedError as error:
            if is_locked(error):
                self.locked.append(index)
            elif not is_there(error):
                raise
            return None

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Every part begins when it is claimed."""

    def write(self, rows: Iterable[Row]) -> None:
        """Give rows to the parts that they belong to, and commit those that are whole."""
        waiting = deque(rows)
        while waiting:
            self._commit_whole_parts()
            part = self._open[0]
            part.write([waiting.popleft() for _ in range(min(len(waiting), part.num_missing))])
        self._commit_whole_parts()

    def finish(self, *, stopped: bool) -> None:
        """Commit parts of which nothing was missing but their object."""
        self._commit_whole_parts()

    def restart(self) -> None:
        """Take up again, after `close`, what was locked."""
        self.todo, self.locked = self.locked, deque()
        self._closed = False

    def close(self) -> None:
        """Let go of parts that are not whole; their rows are kept for the next run."""
        with self._lock:
            self._closed = True
            while self._open:
                self._open.popleft().close()

    def _commit_whole_parts(self) -> None:
        while self._open and self._open[0].num_missing == 0:
            self.num_lost += not self._open[0].commit()
            self._open.popleft()


class OneAtATime:
    """The images of a dangerous part: each is noted before it is read, and waits until the one before is done."""

    def __init__(self, part: Part, tasks: Iterable[Request], options: DecodeOptions, image_size: int) -> None:
        self.part, self.tasks, self.options, self.image_size = part, tasks, options, image_size
        self.size = BatchSize(1)
        self.culprit = part.culprit()

    def batches(self, *, on_cpu: bool, stopped: Callable[[], bool]) -> Iterator[list[Item]]:
        """Yield images one by one; the one over which a process has died has failed, and is not looked at again."""
        for task in self.tasks:
            if stopped():
                return
            if task.ref.name == self.culprit:
                yield [(task, ImageError("decoder_crashed", "a process died while this image was in work, alone"))]
                continue
            self.part.note(task.ref.name)
            batch = BatchOptions(batch_size=1)
            with closing(ReadAhead((task,), self.options, self.image_size, batch)) as images:
                yield from images.batches(on_cpu=False, stopped=stopped)

    def close(self) -> None:
        """Nothing is left open between two images."""


def run_parts(
    engine: Engine,
    queue: PartQueue,
    images: ReadAhead,
    on_batch: Callable[[RunStats], None] = lambda summary: None,
    stopped: Callable[[], bool] = lambda: False,
) -> RunStats:
    """Do all parts of a queue, whose tasks `images` decodes ahead; wait for those that other processes are doing.

    A process that dies leaves its part to the others. Ends early, with what is in the model finished, when `stopped`
    says so.
    """
    total = RunStats()

    def tell(summary: RunStats) -> None:
        on_batch(_sum(total, summary))

    wait_s = _LOOK_AGAIN_S
    while True:
        num_images = total.num_images
        with closing(queue):
            total = _sum(total, run(engine, images, queue, tell, stopped))
        while queue.dangerous and not stopped():
            part = queue.claim(queue.dangerous.popleft())
            if part is not None:
                total = _sum(total, _run_dangerous(engine, queue, part, tell, stopped))
        if stopped() or not queue.locked:
            return total
        queue.restart()
        wait_s = min(2 * wait_s, _MOST_LOOK_AGAIN_S) if total.num_images == num_images else _LOOK_AGAIN_S
        wait_until = time.monotonic() + wait_s
        while time.monotonic() < wait_until and not stopped():
            time.sleep(0.05)
        images = engine.read_ahead(queue.requests())


def run_part(engine: Engine, store: Store, parts: PartsPlan, plan: Worklist, index: int) -> RunStats:
    """Do one part in this process, from its inputs to its object; nothing if it is there."""
    queue = PartQueue(store, parts, plan, (index,), frozenset())
    return run_parts(engine, queue, engine.read_ahead(queue.requests()))


def _run_dangerous(
    engine: Engine,
    queue: PartQueue,
    part: Part,
    on_batch: Callable[[RunStats], None],
    stopped: Callable[[], bool],
) -> RunStats:
    """Do what is missing of a part one image at a time."""
    queue.num_found += part.num_found
    single = replace(engine, batch=BatchOptions(batch_size=1))
    tasks = queue.plan.requests(part.refs, part.finished)
    try:
        summary = run(single, OneAtATime(part, tasks, engine.decode, engine.model.image_size), part, on_batch, stopped)
    except BaseException:
        part.close()
        raise
    if part.num_missing:
        part.close()
    else:
        queue.num_lost += not part.commit()
    return summary


def _sum(first: RunStats, second: RunStats) -> RunStats:
    """Add up two runs with the same model."""
    return RunStats(
        num_images=first.num_images + second.num_images,
        num_ok=first.num_ok + second.num_ok,
        failed=first.failed + second.failed,
        flags=first.flags + second.flags,
        seconds=first.seconds + second.seconds,
        decode_s=first.decode_s + second.decode_s,
        model_s=first.model_s + second.model_s,
        write_s=first.write_s + second.write_s,
        batch_size=second.batch_size or first.batch_size,
        capacity=second.capacity or first.capacity,
    )
