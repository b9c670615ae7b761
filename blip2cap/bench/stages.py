"""One model, one set of images: how long each stage takes for an image, and a real run from files to rows.

The model's stages are measured without the decoding of files beside them: a run over copies at the model's size. On a
CPU, where threads that decode take cores from the model, the difference is part of what a benchmark has to tell.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from blip2cap.bench.machine import Decoding, synchroniser
from blip2cap.engine.run import Engine, run
from blip2cap.errors import ImageError
from blip2cap.models.blip2.model import Blip2
from blip2cap.options import BatchOptions, DecodeOptions
from blip2cap.outputs.journal import JournalSink
from blip2cap.records import ImageRef
from blip2cap.tasks.base import Task
from blip2cap.tasks.worklist import Worklist

_PASS_S = 4.5
"""How long one pass over the images should take, if their number may be chosen."""
_FEWEST, _MOST = 4, 4096
_UNIT = 16
"""Passes have a multiple of so many images unless a batch size is given."""
_TIMES = 16
_PATIENCE_S = 5.0
"""A pass that would take longer is not made only to choose a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What a run is asked to do, but for the images."""

    task: Task
    decode: DecodeOptions
    batch: BatchOptions


@dataclass(kw_only=True, slots=True)
class Pass:
    """One run over all images."""

    num_images: int = 0
    """Good ones."""
    bad: frozenset[str] = frozenset()
    """Names of the others."""
    seconds: float = 0.0
    """From the first decode to the last write."""
    waiting_s: float = 0.0
    """Of that, for decoded images."""
    model_s: float = 0.0
    write_s: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds in the stages of the model."""
    counts: dict[str, int] = field(default_factory=dict)
    """How often each stage ran."""
    texts: list[str] = field(default_factory=list)
    """One a row, "" for a failed one."""
    num_tokens: int = 0
    """Generated in all rows, those that end a text too."""
    num_rows_ok: int = 0
    images_at_once: int = 0
    """Through the image side, at the end."""
    texts_at_once: int = 0
    """Through the text side, at the most."""

    @property
    def images_per_s(self) -> float:
        """Good images only: a bad one costs little."""
        return self.num_images / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """All passes over one set of images."""

    decoding: Decoding
    """By one thread, with nothing beside it."""
    whole: tuple[Pass, ...]
    """From files to rows."""
    alone: tuple[Pass, ...]
    """The model without the decoding of files."""
    staged: Pass
    """The same, with a true time for each stage."""


def engine_for(model: Blip2, setup: Setup, failed: set[str]) -> Engine:
    """Build the engine of a run; the names of images that fail are added to `failed`."""

    def on_failure(ref: ImageRef, error: ImageError) -> None:
        failed.add(ref.name)

    return Engine(model=model, task=setup.task, decode=setup.decode, batch=setup.batch, on_failure=on_failure)


def run_once(model: Blip2, setup: Setup, refs: Sequence[ImageRef], folder: Path) -> Pass:
    """Do what `caption` or `vqa` would do with these images, into a journal in `folder`."""
    out, failed = folder / "rows.jsonl", set[str]()
    engine = engine_for(model, setup, failed)
    sink = JournalSink(out, overwrite=True)
    try:
        sink.begin({})
        model.watch.reset()
        started = time.perf_counter()
        summary = run(engine, engine.read_ahead(Worklist(setup.task.labels).requests(refs, frozenset())), sink)
        seconds = time.perf_counter() - started
    finally:
        sink.close()
    done = Pass(
        num_images=len(refs) - len(failed),
        bad=frozenset(failed),
        seconds=seconds,
        waiting_s=summary.decode_s,
        model_s=summary.model_s,
        write_s=summary.write_s,
        stages=dict(model.watch.seconds),
        counts=dict(model.watch.counts),
        images_at_once=summary.batch_size,
        texts_at_once=summary.capacity,
    )
    with open(out, "rb") as lines:
        for row in map(json.loads, lines):
            done.texts.append(row.get("answer", row.get("text", "")))
            if row["status"] == "ok":
                done.num_rows_ok += 1
                done.num_tokens += row["num_tokens"] + (row["finish_reason"] == "stop")
    return done


@contextmanager
def true_stages(model: Blip2) -> Iterator[None]:
    """Let the clock wait for the device: each stage gets its own time, at the price of what runs side by side."""
    before = model.watch.wait
    model.watch.wait = synchroniser(model.device)
    try:
        yield
    finally:
        model.watch.wait = before


def choose_count(model: Blip2, setup: Setup, copies: Sequence[ImageRef], folder: Path) -> int:
    """Choose how many images make a pass of a few seconds, by passes over more and more; this warms the model up."""
    tried, fewest = 1, _FEWEST
    run_once(model, setup, copies[:1], folder)
    seconds = run_once(model, setup, copies[:1], folder).seconds
    while tried < len(copies) and seconds * (more := min(len(copies), _TIMES * tried)) < _PATIENCE_S:
        run_once(model, setup, copies[:more], folder)
        seconds = run_once(model, setup, copies[:more], folder).seconds / more
        tried = fewest = more
    unit = setup.batch.batch_size or _UNIT
    count = max(fewest, min(_MOST, int(_PASS_S / seconds)))
    return count // unit * unit or count


def measure(
    model: Blip2,
    setup: Setup,
    refs: Sequence[ImageRef],
    copies: Sequence[ImageRef],
    decoding: Decoding,
    folder: Path,
    *,
    repeats: int,
) -> Measured:
    """Measure `repeats` passes of each kind in turns, so that the noise of the machine hits both, after a warm-up."""
    on_cpu = model.device.type == "cpu"
    run_once(model, setup, copies[:_UNIT] if on_cpu else copies, folder)
    alone, whole = [], []
    for _ in range(repeats):
        alone.append(run_once(model, setup, copies, folder))
        whole.append(run_once(model, setup, refs, folder))
    staged = median(alone)
    if not on_cpu:
        with true_stages(model):
            staged = run_once(model, setup, copies, folder)
    return Measured(decoding=decoding, whole=tuple(whole), alone=tuple(alone), staged=staged)


def median(passes: Sequence[Pass]) -> Pass:
    """Return the pass with the middle rate; of an even number, the slower of the two."""
    return sorted(passes, key=lambda one: one.images_per_s)[(len(passes) - 1) // 2]
