"""Measures ours for the suites, one job at a time, with a model that stays loaded.

    PYTHONPATH=. python -m benchmarks.measure '{"name": "tiny"}' '{"images": "DIR", "num_images": 64}'

Prints one JSON object for each job. Random weights end no text: all have `new_tokens`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.lengths import measure_lengths
from benchmarks.profiles import measure_profiles
from blip2cap.batch_size import BatchSize
from blip2cap.bench.benchmark import Benchmark
from blip2cap.bench.options import BenchOptions
from blip2cap.bench.programs import SkipError, peak_rss_mb
from blip2cap.bench.report import digits, run_facts
from blip2cap.bench.stages import Loaded, median, run_once
from blip2cap.decode.image import decode
from blip2cap.decode.read import read
from blip2cap.generate_options import GenerateOptions
from blip2cap.options import BatchOptions, DecodeOptions, ModelOptions
from blip2cap.records import ImageRef

Facts = dict[str, Any]
_NUM_FEATURES = 4
"""Images for texts of given lengths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One measurement."""

    images: str
    """Folder of JPEG files."""
    what: str = "run"
    """run: from files to rows; stages: as `blip2cap bench`; lengths, profiles: see lengths.py and profiles.py."""
    num_images: int | None = None
    """Take the first ones. None: all."""
    warmup: int = 0
    """Images of a run before the clock starts."""
    repeats: int = 1
    """Runs, of which the median counts."""
    new_tokens: int = 12
    """At the most."""
    num_beams: int = 1
    questions: Sequence[str] | None = None
    batch_size: int | None = None
    """Batch size of the vision encoder and the decoder. None: measured, as by default."""
    image_batch: int | None = None
    """Batch size of the vision encoder, if it differs."""
    capacity: int | None = None
    """Batch size of the decoder, if it differs."""
    decode: str = "fast"
    threads: int = 0
    switches: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the model for as long as the job lasts, as {"reads_late": False}."""

    def options(self, model: ModelOptions) -> BenchOptions:
        """Return the same as options of a benchmark."""
        paths = sorted(Path(self.images).glob("*.jpg"))[: self.num_images]
        if len(paths) < (self.num_images or 1):
            raise ValueError(f"{self.images} has only {len(paths)} JPEG files")
        return BenchOptions(
            model=model,
            generate=GenerateOptions(max_new_tokens=self.new_tokens, num_beams=self.num_beams),
            decode=DecodeOptions(mode=self.decode, num_threads=self.threads),
            batch=Sizes(batch_size=self.capacity or self.batch_size, image_batch=self.image_batch or self.batch_size),
            questions=None if self.questions is None else tuple(self.questions),
            refs=tuple(ImageRef(path=str(path), name=path.name) for path in paths),
            num_images=len(paths),
            repeats=self.repeats,
            max_minutes=60,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes(BatchOptions):
    """Two batch sizes, each given or measured: `batch_size` is that of the decoder."""

    image_batch: int | None = None

    def images(self) -> BatchSize:
        """Return the batch size of the vision encoder."""
        return BatchOptions(batch_size=self.image_batch).images()


def measure(loaded: Loaded, job: Job) -> Facts:
    """Measure a job."""
    kinds = {"run": _run, "stages": _stages, "lengths": _lengths, "profiles": _profiles}
    if job.what not in kinds:
        raise ValueError(f"what={job.what}: must be one of {', '.join(kinds)}")
    options, model = job.options(loaded.options), loaded.model
    before = {name: getattr(model, name) for name in job.switches}
    try:
        for name, value in job.switches.items():
            setattr(model, name, value)
        return kinds[job.what](loaded, options, job.warmup)
    finally:
        for name, value in before.items():
            setattr(model, name, value)


def _run(loaded: Loaded, options: BenchOptions, warmup: int) -> Facts:
    model, refs = loaded.model, options.refs or ()
    with TemporaryDirectory() as name:
        folder = Path(name)
        if warmup:
            run_once(loaded, options, refs[:warmup], folder)
        passes = [run_once(loaded, options, refs, folder) for _ in range(options.repeats)]
    if not all(done.num_rows_ok for done in passes):
        raise RuntimeError("no image went through the model")
    facts = run_facts(median(passes))
    if len(passes) > 1:
        facts["all_images_per_s"] = [digits(done.images_per_s) for done in passes]
    facts |= {
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantize": loaded.options.quantize,
        "device": model.device.type,
        "load_s": digits(loaded.load_s),
        "peak_rss_mb": round(peak_rss_mb()),
    }
    if not model.on_cpu:
        facts["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated(model.device) / 1e6)
    return facts


def _stages(loaded: Loaded, options: BenchOptions, warmup: int) -> Facts:
    """Measure what `blip2cap bench` does, over these files."""
    facts = Benchmark(options, loaded=loaded).run()
    return {name: facts[name] for name in ("model", "settings", "images", "rates", "work", "figures")}


def _lengths(loaded: Loaded, options: BenchOptions, warmup: int) -> Facts:
    model, refs = loaded.model, (options.refs or ())[:_NUM_FEATURES]
    pictures = [decode(read(ref, options.decode), model.image_size, options.decode) for ref in refs]
    return measure_lengths(model, model.encode([picture.pixels_HWC for picture in pictures]))


def _profiles(loaded: Loaded, options: BenchOptions, warmup: int) -> Facts:
    return measure_profiles(loaded.model)


def reason(error: Exception) -> Facts:
    """Give the reason why there is no result; that of a SkipError is no error."""
    if isinstance(error, SkipError):
        return {"skipped": str(error)}
    lines = str(error).strip().splitlines()
    return {"error": f"{type(error).__name__}: {lines[0][:300] if lines else ''}"}


def serve(connection: Connection, model: ModelOptions) -> None:
    """Measure the jobs that come, until the other end is closed; a job that fails gives `error`."""
    loaded: Loaded | None = None
    with suppress(EOFError):
        while True:
            job = connection.recv()
            try:
                loaded = loaded or Loaded(model)
                answer = measure(loaded, job)
            except Exception as error:  # the next job may succeed
                answer = reason(error)
            connection.send(answer)


def main(argv: Sequence[str]) -> int:
    """Measure the jobs of the command line."""
    model, *jobs = (json.loads(text) for text in argv)
    loaded = Loaded(ModelOptions(**model))
    for job in jobs:
        print(json.dumps(measure(loaded, Job(**job))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
