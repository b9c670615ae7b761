"""`blip2cap embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

from blip2cap.cli.config import read_lines
from blip2cap.cli.embed_texts import embed_texts
from blip2cap.cli.options import ReportOptions, option, with_options
from blip2cap.cli.run import start
from blip2cap.errors import UsageError
from blip2cap.jobs.job import Job
from blip2cap.options import (
    DEFAULT_MATCHING_MODEL,
    BatchOptions,
    DecodeOptions,
    ModelOptions,
    OutputOptions,
    SourceOptions,
)
from blip2cap.scale.options import RayOptions
from blip2cap.tasks.embed import WHAT, Embed, Precision
from blip2cap.workers.options import WorkerOptions


@with_options(
    without=["random_weights", "device_map", "max_pixels"],
    instead={"source": "texts_file"},
    out="embeddings.parquet",
    model=DEFAULT_MATCHING_MODEL,
)
def embed(
    source: SourceOptions | None,
    model: ModelOptions,
    batch: BatchOptions,
    decode: DecodeOptions,
    workers: WorkerOptions,
    output: OutputOptions,
    ray: RayOptions,
    report: ReportOptions,
    what: Annotated[
        str,
        option(
            "--what NAME",
            "pooled: one vector an image. queries: one for each of the 32 queries, as search uses them. qformer: what "
            "the language model reads.",
            panel="Output",
        ),
    ] = WHAT[0],
    precision: Annotated[
        str, option("--precision NAME", "Type of the stored numbers: float16 or float32.", panel="Output")
    ] = "float32",
    raw: Annotated[bool, option("--raw", "Store vectors as they are, not normalised to length 1.", panel="Output")] = (
        False
    ),
    texts_file: Annotated[
        Path | None,
        option("--texts FILE", "Embed the lines of FILE, as texts, instead of images.", panel="Input"),
    ] = None,
) -> None:
    """Write vectors of every image, or of texts.

    Vectors of images and texts are in one space: the cosine of a text and the nearest of an image's `queries` is the
    score itc of `match`.
    """
    task = Embed(what=what, dtype=cast(Precision, precision), raw=raw)
    if texts_file is not None:
        if ray.address is not None:
            raise UsageError("--ray and --texts exclude each other: a cluster embeds images. Leave one out.")
        texts = read_lines(texts_file, flag="--texts", noun="text")
        embed_texts(texts, task=task, model=model, output=output, report=report)
    else:
        source = source or SourceOptions()  # raises the error that says what is missing
        job = Job(task=task, source=source, output=output, model=model, decode=decode, batch=batch, workers=workers)
        start(job, report, ray)
