"""Measures ours for the suites: a model and jobs in as JSON, one line of JSON out for each job.

    PYTHONPATH=. python -m benchmarks.measure '{"name": "tiny"}' '{"images": "DIR", "num_images": 64}'

The model is loaded once, for the first job that needs it. Without jobs on the command line they are read from standard
input, a line each; one that fails answers with `error`. Random weights end no text: all have `new_tokens`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.lengths import measure_lengths
from benchmarks.suite import Facts, digits, reason
from blip2cap.batch_size import BatchSize
from blip2cap.bench.benchmark import Benchmark
from blip2cap.bench.options import BenchOptions
from blip2cap.bench.stages import Pass, Setup, median, run_once
from blip2cap.decode.image import decode
from blip2cap.decode.read import read
from blip2cap.models.blip2.load import load
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.checkpoint import find
from blip2cap.options import BatchOptions, DecodeOptions, GenerateOptions, ModelOptions
from blip2cap.prompts import CAPTION_PROMPTS, VQA_TEMPLATES, Template
from blip2cap.records import ImageRef
from blip2cap.tasks.worklist import Worklist

_NUM_FEATURES = 4
"""Images that texts of given lengths are about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One measurement."""

    images: str
    """Folder of JPEG files."""
    what: str = "run"
    """run: from files to rows; stages: with a table of stages, and the share of what the machine allows; lengths: see
    lengths.py."""
    num_images: int | None = None
    """Take the first so many."""
    warmup: int = 0
    """Images of a run before the clock starts."""
    repeats: int = 1
    """Runs, of which the middle one counts."""
    new_tokens: int = 12
    """At the most."""
    num_beams: int = 1
    questions: Sequence[str] | None = None
    batch_size: int | None = None
    """Images, and texts, at once. None: measured, as by default."""
    image_batch: int | None = None
    """Images at once, if another number than texts."""
    capacity: int | None = None
    """Texts at once, if another number than images."""
    decode: str = "fast"
    threads: int = 0
    graphs: bool | None = None
    """Of the model, as are the next; None leaves it as it is."""
    check_every: int | None = None

    def refs(self) -> list[ImageRef]:
        """List the files."""
        paths = sorted(Path(self.images).glob("*.jpg"))[: self.num_images]
        if len(paths) < (self.num_images or 1):
            raise ValueError(f"{self.images} has only {len(paths)} JPEG files")
        return [ImageRef(path=str(path), name=path.name) for path in paths]

    def setup(self, family: str) -> Setup:
        """Say what a run does."""
        if self.questions is None:
            plan = Worklist(Template(CAPTION_PROMPTS[family]))
        else:
            plan = Worklist(Template(VQA_TEMPLATES[family], question=True), tuple(self.questions))
        return Setup(
            generate=GenerateOptions(max_new_tokens=self.new_tokens, num_beams=self.num_beams),
            decode=DecodeOptions(mode=self.decode, num_threads=self.threads),
            batch=Sizes(batch_size=self.capacity or self.batch_size, image_batch=self.image_batch or self.batch_size),
            plan=plan,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes(BatchOptions):
    """Two sizes, each given or measured: `batch_size` is that of texts."""

    image_batch: int | None = None

    def images(self) -> BatchSize:
        """Return the number of images to encode at once."""
        return BatchOptions(batch_size=self.image_batch).images()


class Measurer:
    """Measures jobs with one model."""

    def __init__(self, options: ModelOptions) -> None:
        self.options = options
        self.checkpoint = find(options)
        self.load_s = 0.0
        self._model: Blip2 | None = None

    @property
    def model(self) -> Blip2:
        """The model, loaded if it is not there."""
        if self._model is None:
            started = time.perf_counter()
            self._model = load(self.checkpoint, self.options)
            self.load_s = time.perf_counter() - started
        return self._model

    def measure(self, job: Job) -> Facts:
        """Do a job."""
        jobs = {"run": self._run, "stages": self._stages, "lengths": self._lengths}
        if job.what not in jobs:
            raise ValueError(f"what={job.what}: must be one of {', '.join(jobs)}")
        return jobs[job.what](job)

    def _run(self, job: Job) -> Facts:
        model, refs, setup = self.model, job.refs(), job.setup(self.checkpoint.family)
        with TemporaryDirectory() as folder, switched(model, job):
            if job.warmup:
                run_once(model, setup, refs[: job.warmup], Path(folder))
            passes = [run_once(model, setup, refs, Path(folder)) for _ in range(job.repeats)]
        if not all(done.num_rows_ok for done in passes):
            raise RuntimeError("no image went through the model")
        facts = facts_of(median(passes))
        if len(passes) > 1:
            facts["all_images_per_s"] = [digits(done.images_per_s) for done in passes]
        return {**facts, **self._about()}

    def _about(self) -> Facts:
        """Say what computed, and in how much memory."""
        facts: Facts = {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quantize": self.options.quantize,
            "device": self.model.device.type,
            "load_s": digits(self.load_s),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        if not self.model.on_cpu:
            facts["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated(self.model.device) / 1e6)
        return facts

    def _stages(self, job: Job) -> Facts:
        """Do what `blip2cap bench` does, over these files."""
        setup, refs = job.setup(self.checkpoint.family), tuple(job.refs())
        self._model = None
        options = BenchOptions(
            command="",
            model=self.options,
            generate=setup.generate,
            decode=setup.decode,
            batch=setup.batch,
            questions=None if job.questions is None else tuple(job.questions),
            refs=refs,
            num_images=len(refs),
            repeats=job.repeats,
        )
        facts = Benchmark(options).run()
        return {name: facts[name] for name in ("model", "settings", "images", "rates", "work", "figures")}

    def _lengths(self, job: Job) -> Facts:
        model, options = self.model, DecodeOptions(mode=job.decode)
        pictures = [decode(read(ref, options), model.image_size, options) for ref in job.refs()[:_NUM_FEATURES]]
        features = model.encode([picture.pixels_HWC for picture in pictures])
        with switched(model, job):
            return measure_lengths(model, features)


@contextmanager
def switched(model: Blip2, job: Job) -> Iterator[None]:
    """Set the switches of the model that a job names, for as long as it lasts."""
    before = model.graphs, model.check_every
    if job.graphs is not None:
        model.graphs = job.graphs
    if job.check_every is not None:
        model.check_every = job.check_every
    try:
        yield
    finally:
        model.graphs, model.check_every = before


def facts_of(done: Pass) -> Facts:
    """Gather the figures of one run. On a GPU, which works behind the program's back, a stage is not its true time."""
    return {
        "images": done.num_images,
        "rows": done.num_rows_ok,
        "seconds": digits(done.seconds),
        "images_per_s": digits(done.images_per_s),
        "s_per_image": digits(done.seconds / done.num_images),
        "new_tokens": digits(done.num_tokens / done.num_rows_ok),
        "images_at_once": done.images_at_once,
        "texts_at_once": done.texts_at_once,
        "waiting_for_images_s": digits(done.waiting_s),
        "write_s": digits(done.write_s),
        "stages_s": {name: digits(seconds) for name, seconds in done.stages.items()},
        "counts": done.counts,
        "overhead": digits(1 - sum(done.stages.values()) / done.seconds),
        "texts": done.texts[:3],
    }


def main(argv: Sequence[str]) -> int:
    """Answer jobs; whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    model, *jobs = argv
    measurer = Measurer(ModelOptions(**json.loads(model)))
    with answers:
        for line in jobs or sys.stdin:
            try:
                answer = measurer.measure(Job(**json.loads(line)))
            except Exception as error:  # the next job may go well
                answer = reason(error)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
