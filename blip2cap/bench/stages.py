"""One model, one set of images: the time of each stage for one image, real runs from files to rows, and batch sizes.

The model's stages are measured without the decoding of files: in a run over copies at the model's size. On a CPU, where
decoding threads compete with the model for cores, the difference is part of what a benchmark shows.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch

from blip2cap.bench.budget import Budget
from blip2cap.bench.machine import Decoding, synchroniser
from blip2cap.bench.options import BenchOptions
from blip2cap.engine.run import Engine, run
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.checkpoint import find
from blip2cap.models.registry import FAMILIES, load
from blip2cap.models.vlm.model import Vlm
from blip2cap.options import BatchOptions, ModelOptions
from blip2cap.outputs.journal import JournalSink
from blip2cap.records import ImageRef
from blip2cap.tasks.base import Worklist

PASS_S = 4.5
"""Time of one pass over the images, if their number may be chosen."""
_FEWEST, _MOST = 4, 4096
_UNIT = 16
"""The number of images is a multiple of this, or of the batch size if one is given."""
_TIMES = 16
_PATIENCE_S = 5.0
"""A pass that would take longer is not run only to choose a number."""
_LARGEST = {"cpu": 64, "cuda": 1024}
"""Last batch size of a sweep."""
_SWEEP_PASS_S = 1.5
_LONG_S, _TOO_LONG_S = 5.0, 60.0
"""A batch that takes longer is measured once; one that takes much longer is the last."""
_WORSE = 0.85
"""Two batch sizes in a row that reach less of the best rate than this end the sweep."""


class Loaded:
    """A model that is loaded when it is first used, and that can be freed and loaded again."""

    def __init__(self, options: ModelOptions) -> None:
        self.options = options
        self.checkpoint = find(options)
        self.load_s = 0.0
        self._model: Blip2 | Vlm | None = None

    @property
    def model(self) -> Blip2 | Vlm:
        """The model; keep no other reference to it."""
        if self._model is None:
            started = time.perf_counter()
            self._model = cast("Blip2 | Vlm", load(self.checkpoint, self.options))
            self.load_s = time.perf_counter() - started
        return self._model

    def free(self) -> None:
        """Free its memory."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(kw_only=True, slots=True)
class Pass:
    """One run over all images."""

    num_images: int = 0
    """Images without an error."""
    bad: frozenset[str] = frozenset()
    """Names of the others."""
    seconds: float = 0.0
    """From the first decode to the last write."""
    waiting_s: float = 0.0
    """Part of it: waiting for decoded images."""
    model_s: float = 0.0
    write_s: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds in the stages of the model."""
    counts: dict[str, int] = field(default_factory=dict)
    """Number of times that each stage ran."""
    texts: list[str] = field(default_factory=list)
    """One for each row, "" for a failed one."""
    num_tokens: int = 0
    """Tokens generated in all rows, end tokens included."""
    num_rows_ok: int = 0
    images_at_once: int = 0
    """Batch size of the vision encoder, at the end."""
    texts_at_once: int = 0
    """Largest batch of the decoder."""

    @property
    def images_per_s(self) -> float:
        """Rate of the images without an error: the others cost little."""
        return self.num_images / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """All passes over one set of images."""

    decoding: Decoding
    """One thread, with nothing else running."""
    whole: tuple[Pass, ...]
    """From files to rows."""
    alone: tuple[Pass, ...]
    """The model without the decoding of files."""
    staged: Pass
    """The same, with the true time of each stage."""


def run_once(loaded: Loaded, options: BenchOptions, refs: Sequence[ImageRef], folder: Path) -> Pass:
    """Run `caption` or `vqa` on these images, into a journal in `folder`. Nothing else here calls the engine."""
    model, out, failed = loaded.model, folder / "rows.jsonl", set[str]()
    task = options.task.for_checkpoint(loaded.checkpoint, FAMILIES[loaded.checkpoint.family])
    engine = Engine(
        model=model,
        task=task,
        decode=options.decode,
        batch=options.batch,
        on_failure=lambda ref, error: failed.add(ref.name),
    )
    requests = Worklist(task).requests(refs, frozenset())
    sink = JournalSink(out, overwrite=True)
    try:
        sink.begin({})
        model.watch.reset()
        started = time.perf_counter()
        stats = run(engine, engine.read_ahead(requests), sink)
        seconds = time.perf_counter() - started
    finally:
        sink.close()
    done = Pass(
        num_images=len(refs) - len(failed),
        bad=frozenset(failed),
        seconds=seconds,
        waiting_s=stats.decode_s,
        model_s=stats.model_s,
        write_s=stats.write_s,
        stages=dict(model.watch.seconds),
        counts=dict(model.watch.counts),
        images_at_once=stats.batch_size,
        texts_at_once=stats.capacity,
    )
    with open(out, "rb") as lines:
        for row in map(json.loads, lines):
            done.texts.append(row.get("answer", row.get("text", "")))
            if row["status"] == "ok":
                done.num_rows_ok += 1
                done.num_tokens += row["num_tokens"] + (row["finish_reason"] == "stop")
    return done


def choose_count(loaded: Loaded, options: BenchOptions, copies: Sequence[ImageRef], folder: Path) -> tuple[int, float]:
    """Choose the number of images for a pass of a few seconds, by ever larger passes; this warms up the model.

    Return it with the seconds that an image takes.
    """
    tried, fewest = 1, _FEWEST
    seconds = run_once(loaded, options, copies[:1], folder).seconds
    if seconds < _PATIENCE_S:
        seconds = run_once(loaded, options, copies[:1], folder).seconds
    while tried < len(copies) and seconds * (more := min(len(copies), _TIMES * tried)) < _PATIENCE_S:
        run_once(loaded, options, copies[:more], folder)
        seconds = run_once(loaded, options, copies[:more], folder).seconds / more
        tried = fewest = more
    unit = options.batch.batch_size or _UNIT
    count = max(fewest, min(_MOST, int(PASS_S / seconds)))
    return count // unit * unit or count, seconds


def measure(
    loaded: Loaded,
    options: BenchOptions,
    refs: Sequence[ImageRef],
    copies: Sequence[ImageRef],
    decoding: Decoding,
    folder: Path,
    spare_s: float = math.inf,
) -> Measured:
    """Measure passes of both kinds in turns, so that the noise of the machine affects both.

    They end early if the next two would take longer than what is left of `spare_s`. The model is warm on a CPU; on a
    GPU, the sizes of its batches have to be met once.
    """
    model = loaded.model
    on_cpu = model.device.type == "cpu"
    ends = time.monotonic() + spare_s
    if not on_cpu:
        run_once(loaded, options, copies, folder)
    alone: list[Pass] = []
    whole: list[Pass] = []
    for _ in range(options.repeats):
        if whole and time.monotonic() + alone[-1].seconds + whole[-1].seconds > ends:
            break
        alone.append(run_once(loaded, options, copies, folder))
        whole.append(run_once(loaded, options, refs, folder))
    staged = median(alone)
    if not on_cpu:
        wait = model.watch.wait
        model.watch.wait = synchroniser(model.device)  # each stage gets its own time; nothing overlaps in this pass
        try:
            staged = run_once(loaded, options, copies, folder)
        finally:
            model.watch.wait = wait
    return Measured(decoding=decoding, whole=tuple(whole), alone=tuple(alone), staged=staged)


def sweep(
    loaded: Loaded, options: BenchOptions, refs: Sequence[ImageRef], folder: Path, budget: Budget | None = None
) -> dict[int, list[Pass]]:
    """Measure runs from files to rows with batch sizes 1, 2, 4, ... until larger ones are no faster.

    Each size is warmed up first. A size for which memory is too small for any image ends the sweep, and one that would
    exceed the budget.
    """
    found: dict[int, list[Pass]] = {}
    batch_size, best, num_worse, longest_s = 1, 0.0, 0, 0.0
    while batch_size <= min(len(refs), _LARGEST[loaded.model.device.type]) and num_worse < 2:
        if budget is not None and 2 * longest_s > budget.left_s:
            break
        started = time.monotonic()
        sized = replace(options, batch=BatchOptions(batch_size=batch_size))
        warm = run_once(loaded, sized, refs[:batch_size], folder)
        if not warm.num_images:
            break
        is_long = warm.seconds > _LONG_S
        num_batches = 1 if is_long else max(2, int(_SWEEP_PASS_S / warm.seconds))
        taken = refs[: min(num_batches, len(refs) // batch_size) * batch_size]
        found[batch_size] = [run_once(loaded, sized, taken, folder) for _ in range(1 if is_long else options.repeats)]
        rate = median(found[batch_size]).images_per_s
        best = max(best, rate)
        longest_s = max(longest_s, time.monotonic() - started)
        num_worse = num_worse + 1 if rate < _WORSE * best else 0
        if warm.seconds > _TOO_LONG_S:
            break
        batch_size *= 2
    return found


def median(passes: Sequence[Pass]) -> Pass:
    """Return the pass with the median rate; of an even number, the slower of the two."""
    return sorted(passes, key=lambda one: one.images_per_s)[(len(passes) - 1) // 2]
