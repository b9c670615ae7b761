"""The timed loop: requests -> decoded images -> results -> rows. It connects all stages and does no work itself."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

from blip2cap.batch_size import BatchSize
from blip2cap.engine.first_texts import FirstTexts
from blip2cap.engine.flow import DecodedRequest, Flow
from blip2cap.engine.read_ahead import DecodeTrace, ReadAhead, SharedTrace, in_batches
from blip2cap.errors import Blip2CapError, ImageError
from blip2cap.models.base import Model
from blip2cap.models.registry import FAMILIES
from blip2cap.options import BatchOptions, DecodeOptions
from blip2cap.outputs.base import RowSink
from blip2cap.records import ImageRef
from blip2cap.rows import Row
from blip2cap.tasks.base import Request, Task

_WRITE_S = 1.0
"""Longest time, in seconds, that a complete row waits to be written with others."""


@dataclass(kw_only=True, slots=True)
class RunStats:
    """Counts and times of a run."""

    num_images: int = 0
    """Number of images processed."""
    num_ok: int = 0
    """Number of rows written with status ok."""
    failed: Counter[str] = field(default_factory=Counter)
    """Number of rows written with status failed, by error."""
    flags: Counter[str] = field(default_factory=Counter)
    """Number of rows that the loop guard flagged, by flag."""
    seconds: float = 0.0
    """Time from the first decode to the last write."""
    decode_s: float = 0.0
    """Part of it spent waiting for decoded images."""
    model_s: float = 0.0
    write_s: float = 0.0
    batch_size: int = 0
    """Number of images encoded at once at the end of the run."""
    capacity: int = 0
    """Maximum number of prompts processed at once at the end of the run."""
    num_prompt_tokens: int = 0
    """Number of tokens of prompts and images that a server has counted."""
    num_text_tokens: int = 0
    """Number of tokens that a server has generated."""

    @property
    def num_failed(self) -> int:
        """Number of rows written with status failed."""
        return self.failed.total()

    def add(self, num_images: int, rows: Iterable[Row]) -> None:
        """Count a batch of rows."""
        self.num_images += num_images
        for row in rows:
            if row.status == "ok":
                self.num_ok += 1
            else:
                self.failed[row.error] += 1
            if row.flag:
                self.flags[row.flag] += 1

    def __add__(self, other: RunStats) -> RunStats:
        """Add up two consecutive runs with the same model."""
        return RunStats(
            num_images=self.num_images + other.num_images,
            num_ok=self.num_ok + other.num_ok,
            failed=self.failed + other.failed,
            flags=self.flags + other.flags,
            seconds=self.seconds + other.seconds,
            decode_s=self.decode_s + other.decode_s,
            model_s=self.model_s + other.model_s,
            write_s=self.write_s + other.write_s,
            batch_size=other.batch_size or self.batch_size,
            capacity=other.capacity or self.capacity,
            num_prompt_tokens=self.num_prompt_tokens + other.num_prompt_tokens,
            num_text_tokens=self.num_text_tokens + other.num_text_tokens,
        )


class RowMaker(Protocol):
    """Makes rows of requests: an engine, or workers that have one each."""

    def read_ahead(self, requests: Iterable[Request], trace: SharedTrace | None = None) -> Any:
        """Start to read requests; the result is for `row_batches`, or to be closed."""

    def row_batches(
        self, images: Any, stats: RunStats, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[list[Row]]:
        """Yield rows in the order of the requests; counts and times go to `stats`. Closes `images`.

        Once `stopped` returns True, no more images are taken; those in the model are completed.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """The model, the task and the options of one run."""

    model: Model
    task: Task
    decode: DecodeOptions
    batch: BatchOptions
    size: BatchSize | None = None
    """Number of images in a batch, for several calls of `read_ahead`; None: each measures its own."""
    on_failure: Callable[[ImageRef, ImageError], None] = lambda ref, error: None
    """Called for every image that fails, and for every result that could not be made."""
    say: Callable[[str], None] = lambda line: None
    """Called with a warning about the texts of the run."""

    def read_ahead(self, requests: Iterable[Request], trace: DecodeTrace | None = None) -> ReadAhead:
        """Start to read and decode the images of requests."""
        return ReadAhead(requests, self.decode, self.model.image_input, self.size or self.batch.images(), trace)

    def row_batches(
        self, images: ReadAhead, stats: RunStats, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[list[Row]]:
        """Yield rows in the order of the requests, a batch of images at a time; counts and times go to `stats`.

        Once `stopped` returns True, no more images are taken; those in the model are completed, as far as the model's
        family gives them time. Closes `images`. Rows that are complete come before an error that ends the run.
        """
        with closing(images):
            batches = images.batches(on_cpu=self.model.on_cpu, stopped=stopped)
            yield from self._row_batches(batches, images.size, stats, stopped)

    def rows(self, items: Iterable[DecodedRequest]) -> list[Row]:
        """Make the rows of decoded images, in the order of the images and of their labels."""
        size = self.batch.images()
        batches = in_batches(items, lambda: size.size)
        return [row for rows in self._row_batches(batches, size, RunStats(), lambda: False) for row in rows]

    def _row_batches(
        self, batches: Iterator[list[DecodedRequest]], size: BatchSize, stats: RunStats, stopped: Callable[[], bool]
    ) -> Generator[list[Row]]:
        if not self.model.on_cpu:
            size.settle()  # a GPU is fastest with the largest batch, and each other size would cost it time
        first_texts = FirstTexts(self.say)
        flow = Flow(
            self.model,
            self.task,
            capacity=self.batch.batch_size,
            on_failure=self.on_failure,
            first_texts=first_texts,
        )
        started = mark = written = time.monotonic()
        more, finish_first = True, False
        grace_s, stopped_at = FAMILIES[self.model.checkpoint.family].grace_s, math.inf
        problem: Blip2CapError | None = None
        with closing(flow.session):
            while more or flow.num_images:
                if more and flow.accepts_more(size) and not finish_first:
                    wanted = size.size
                    batch = next(batches, None)
                    decoded = time.monotonic()
                    stats.decode_s += decoded - mark
                    mark = decoded
                    more = batch is not None
                    # A short batch: images come slowly, so write rows before waiting for more images.
                    finish_first = len(batch or ()) < wanted
                    flow.take(batch or (), size)
                try:
                    flow.advance()
                except Blip2CapError as error:
                    problem = error
                idle = flow.num_ready == flow.num_images
                finish_first = finish_first and not idle
                done = time.monotonic()
                if stopped():  # asked at every step: a worker tells its parent then that it is alive
                    more, stopped_at = False, min(done, stopped_at)
                ends = problem is not None or done - stopped_at > grace_s
                stats.model_s += done - mark
                mark = done
                stats.seconds = mark - started
                if flow.num_ready and (idle or ends or flow.num_ready >= size.size or done - written > _WRITE_S):
                    num_images, rows = flow.rows()
                    stats.add(num_images, rows)
                    stats.batch_size, stats.capacity = size.size, flow.session.capacity
                    stats.num_prompt_tokens, stats.num_text_tokens = flow.num_prompt_tokens, flow.num_text_tokens
                    try:
                        yield rows
                    finally:
                        written = mark = time.monotonic()
                        stats.write_s += mark - done
                        stats.seconds = mark - started
                if problem is not None:
                    raise problem
                if ends:
                    break
        first_texts.finish()


def run(
    maker: RowMaker,
    images: Any,
    sink: RowSink,
    on_batch: Callable[[RunStats], None] = lambda stats: None,
    stopped: Callable[[], bool] = lambda: False,
) -> RunStats:
    """Make the rows of all images and write them in batches; call `on_batch` when a batch is safe.

    Ends early, after the images in the model are complete, once `stopped` returns True.
    """
    stats = RunStats()
    with closing(maker.row_batches(images, stats, stopped)) as batches:
        for rows in batches:
            sink.write(rows)
            on_batch(stats)
    sink.finish(stopped=stopped())
    return stats
