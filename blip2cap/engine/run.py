"""The loop: tasks -> decoded images -> texts -> rows -> sink, timed. It knows all stages and does no work itself."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from blip2cap.batch_size import BatchSize
from blip2cap.decode.image import Decoded, decode
from blip2cap.decode.isolate import Isolation
from blip2cap.decode.read import read
from blip2cap.decode.threads import limit_myself
from blip2cap.decode.trace import Trace
from blip2cap.engine.flow import Flow, Item
from blip2cap.engine.read_ahead import DecodeAhead, in_batches
from blip2cap.errors import ImageError
from blip2cap.models.base import Model
from blip2cap.models.blip2.resize import choose_resizer
from blip2cap.options import BatchOptions, DecodeOptions, GenerateOptions, TextOptions
from blip2cap.outputs.base import Sink
from blip2cap.records import ImageRef, Row
from blip2cap.tasks.worklist import Request

_WRITE_S = 1.0
"""Rows that are ready wait no longer than this for others to be written with."""


@dataclass(kw_only=True, slots=True)
class RunStats:
    """What a run did."""

    num_images: int = 0
    """Images that went through this run."""
    num_ok: int = 0
    """Rows written with status ok."""
    failed: Counter[str] = field(default_factory=Counter)
    """Rows written with status failed, by error."""
    flags: Counter[str] = field(default_factory=Counter)
    """Rows that the loop guard says something about, by what it says."""
    seconds: float = 0.0
    """From the first decode to the last write."""
    decode_s: float = 0.0
    """Of that, waiting for decoded images."""
    model_s: float = 0.0
    write_s: float = 0.0
    batch_size: int = 0
    """Images encoded at once, at the end."""
    capacity: int = 0
    """Texts decoded at once, at the most, at the end."""

    @property
    def num_failed(self) -> int:
        """Rows written with status failed."""
        return self.failed.total()

    def add(self, num_images: int, rows: Iterable[Row]) -> None:
        """Count rows that are about to be written."""
        self.num_images += num_images
        for row in rows:
            if row.status == "ok":
                self.num_ok += 1
            else:
                self.failed[row.error] += 1
            if row.flag:
                self.flags[row.flag] += 1


class Images(Protocol):
    """Decoded images of tasks, on their way to a model."""

    size: BatchSize
    """How many make a batch."""

    def batches(self, *, on_cpu: bool, stopped: Callable[[], bool]) -> Iterator[list[Item]]:
        """Yield batches; a short or empty one says that there are no more for now."""

    def close(self) -> None:
        """No more are wanted."""


class ReadAhead:
    """The images of tasks, read and decoded in threads from the moment it is made; a model may still be loading.

    With a `trace`, images that may have ended an earlier run are decoded in processes of their own.
    """

    def __init__(
        self,
        tasks: Iterable[Request],
        options: DecodeOptions,
        image_size: int,
        batch: BatchOptions,
        trace: Trace | None = None,
    ) -> None:
        self.options, self.image_size, self.trace = options, image_size, trace
        self.size = batch.images()
        """How many make a batch."""
        self._turn = threading.Event()
        self._turn.set()
        self._isolation = Isolation(options, image_size, choose_resizer())
        self._ahead = DecodeAhead(
            tasks,
            lambda task: task.ref,
            self._decode,
            num_threads=options.threads,
            num_ahead=2 * self.size.most + options.threads,
            timeout_s=options.timeout_s,
        )

    def _decode(self, ref: ImageRef) -> Decoded:
        started = time.monotonic()
        data = read(ref, self.options)
        read_s = time.monotonic() - started
        self._turn.wait()
        if self.options.isolate or (self.trace is not None and self.trace.suspects(ref)):
            limit_myself()  # to start a process may take long, which is no fault of the image
            return self._isolation.decode(data, read_s=read_s)
        with self.trace.decoding(ref) if self.trace is not None else nullcontext():
            return decode(data, self.image_size, self.options, choose_resizer())

    def batches(self, *, on_cpu: bool, stopped: Callable[[], bool]) -> Iterator[list[Item]]:
        """Yield batches; a short or empty one says that there are no more for now.

        Images are decoded only while they are waited for, if the model is `on_cpu` and needs the same cores. Side by
        side they would get in each other's way: the model's threads wait for one another at every operation, and the
        one whose core is taken holds up all. Files are read ahead all the same.
        """
        batches = in_batches(self._ahead.results(stopped), lambda: self.size.size)
        while True:
            self._turn.set()
            batch = next(batches, None)
            if on_cpu:
                self._turn.clear()
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """End the processes and the threads."""
        self._turn.set()
        self._isolation.close()
        self._ahead.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """A model with the options of one run."""

    model: Model
    generate: GenerateOptions
    decode: DecodeOptions
    batch: BatchOptions
    text: TextOptions = field(default_factory=TextOptions)
    on_failure: Callable[[ImageRef, ImageError], None] = lambda ref, error: None
    """Told of every image that fails, and of every text that could not be made."""

    def read_ahead(self, tasks: Iterable[Request]) -> ReadAhead:
        """Begin to read and decode the images of tasks."""
        return ReadAhead(tasks, self.decode, self.model.image_size, self.batch)

    def row_batches(
        self, images: Images, summary: RunStats, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[list[Row]]:
        """Yield rows in the order of the tasks, a batch of images at a time; what it took is added to `summary`.

        When `stopped` says so, no more images are taken, and those that are in the model are finished. Closes `images`.
        """
        with closing(images):
            batches = images.batches(on_cpu=self.model.on_cpu, stopped=stopped)
            yield from self._row_batches(batches, images.size, summary, stopped)

    def rows(self, items: Iterable[Item]) -> list[Row]:
        """Make the rows of decoded images, in their order and in that of what is asked of each."""
        size = self.batch.images()
        batches = in_batches(items, lambda: size.size)
        return [row for rows in self._row_batches(batches, size, RunStats(), lambda: False) for row in rows]

    def _row_batches(
        self, batches: Iterator[list[Item]], size: BatchSize, summary: RunStats, stopped: Callable[[], bool]
    ) -> Generator[list[Row]]:
        flow = Flow(self.model, self.generate, self.text, capacity=self.batch.batch_size, on_failure=self.on_failure)
        started = mark = written = time.monotonic()
        more, finish_first = True, False
        while more or flow.num_images:
            if more and flow.has_room and not finish_first:
                wanted = size.size
                batch = next(batches, None)
                decoded = time.monotonic()
                summary.decode_s += decoded - mark
                mark = decoded
                more = batch is not None
                finish_first = (
                    len(batch or ()) < wanted
                )  # images come slowly: say what is known before waiting for more
                flow.take(batch or (), size)
            flow.advance()
            idle = flow.num_ready == flow.num_images
            finish_first = finish_first and not idle
            more = more and not stopped()
            done = time.monotonic()
            summary.model_s += done - mark
            mark = done
            summary.seconds = mark - started
            if flow.num_ready and (idle or flow.num_ready >= size.size or done - written > _WRITE_S):
                num_images, rows = flow.rows()
                summary.add(num_images, rows)
                summary.batch_size, summary.capacity = size.size, flow.texts.capacity
                try:
                    yield rows
                finally:
                    written = mark = time.monotonic()
                    summary.write_s += mark - done
                    summary.seconds = mark - started


def run(
    engine: Engine,
    images: Images,
    sink: Sink,
    on_batch: Callable[[RunStats], None] = lambda summary: None,
    stopped: Callable[[], bool] = lambda: False,
) -> RunStats:
    """Make the rows of all images and write them, batch by batch; `on_batch` is told after each, when they are safe.

    Ends early, with what is in the model finished, when `stopped` says so.
    """
    summary = RunStats()
    with closing(engine.row_batches(images, summary, stopped)) as batches:
        for rows in batches:
            sink.write(rows)
            on_batch(summary)
    sink.finish(stopped=stopped())
    return summary
