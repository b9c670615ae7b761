"""`blip2cap caption`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from blip2cap.cli.options import ReportOptions, option, with_options
from blip2cap.cli.prompts import own_library
from blip2cap.cli.run import start
from blip2cap.generate_options import GenerateOptions, TextOptions
from blip2cap.jobs.job import Job
from blip2cap.options import BatchOptions, DecodeOptions, ModelOptions, OutputOptions, SourceOptions
from blip2cap.prompt_library import text_of
from blip2cap.scale.options import RayOptions
from blip2cap.server_options import ServerOptions
from blip2cap.tasks.caption import Caption
from blip2cap.workers.options import WorkerOptions


@with_options(without=["random_weights"])
def caption(
    source: SourceOptions,
    model: ModelOptions,
    server: ServerOptions,
    batch: BatchOptions,
    decode: DecodeOptions,
    workers: WorkerOptions,
    generate: GenerateOptions,
    text: TextOptions,
    output: OutputOptions,
    ray: RayOptions,
    report: ReportOptions,
    prompt: Annotated[
        str | None,
        option(
            "--prompt TEXT",
            'Text that the caption continues, e.g. "a photo of", or, for models that follow instructions, what to '
            "write; may contain {stem}, {folder} and {file_name}. @NAME: one of `blip2cap prompts`.",
            panel="Generation",
        ),
    ] = None,
) -> None:
    """Write a caption for every image."""
    task = Caption(template=text_of(prompt, own_library()), generate=generate, text=text)
    model = replace(model, server=server)
    job = Job(task=task, source=source, output=output, model=model, decode=decode, batch=batch, workers=workers)
    start(job, report, ray)
