"""`blip2cap match`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from blip2cap.cli.config import read_lines
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
from blip2cap.tasks.match import Match
from blip2cap.workers.options import WorkerOptions


@with_options(without=["random_weights", "device_map", "max_pixels"], out="matches.jsonl", model=DEFAULT_MATCHING_MODEL)
def match(
    source: SourceOptions,
    model: ModelOptions,
    batch: BatchOptions,
    decode: DecodeOptions,
    workers: WorkerOptions,
    output: OutputOptions,
    ray: RayOptions,
    report: ReportOptions,
    text: Annotated[
        list[str] | None,
        option("--text TEXT", "Text to compare with every image; repeatable.", panel="Input", once=False),
    ] = None,
    texts_file: Annotated[
        Path | None, option("--texts FILE", "Read texts from FILE, one per line.", panel="Input")
    ] = None,
    captions: Annotated[
        str | None,
        option(
            "--captions PATH",
            "Compare every image with its own captions: an output of `caption`, COCO, LAVIS or kohya .json, "
            "imagefolder, .csv, or a folder of .txt files.",
            panel="Input",
        ),
    ] = None,
) -> None:
    """Score how well texts fit every image.

    A row for each image and text: itm, the probability that they belong together, and itc, their cosine. Every text is
    compared with every image, or, with --captions, an image with its own. An image is encoded once.
    """
    texts = tuple(text or ())
    if texts_file:
        texts += read_lines(texts_file, flag="--texts", noun="text")
    if captions is None:
        if not texts:
            raise UsageError(
                "no text given. Give texts for all images with --text TEXT or --texts FILE, or each image's own with "
                "--captions PATH."
            )
        task = Match(texts=texts)
    else:
        if texts:
            raise UsageError("--captions and --text exclude each other: each gives the texts. Leave one out.")
        if captions == "-" and "-" in (*source.inputs, *source.files_from):
            raise UsageError("`-` given more than once: standard input can be read once.")
        from blip2cap.outputs.captions import read_captions

        task = Match(captions=read_captions(captions))
    job = Job(task=task, source=source, output=output, model=model, decode=decode, batch=batch, workers=workers)
    start(job, report, ray)
