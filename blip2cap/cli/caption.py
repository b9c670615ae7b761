"""`blip2cap caption`."""

from __future__ import annotations

from typing import Annotated

from blip2cap.cli.execution import start
from blip2cap.cli.guard import handle_errors
from blip2cap.cli.options import ReportOptions, option, with_options
from blip2cap.jobs.job import Job
from blip2cap.options import (
    BatchOptions,
    DecodeOptions,
    GenerateOptions,
    ModelOptions,
    OutputOptions,
    SourceOptions,
    TextOptions,
)


@handle_errors
@with_options(without=["random_weights"])
def caption(
    source: SourceOptions,
    model: ModelOptions,
    batch: BatchOptions,
    decode: DecodeOptions,
    generate: GenerateOptions,
    text: TextOptions,
    output: OutputOptions,
    report: ReportOptions,
    prompt: Annotated[
        str | None,
        option(
            "--prompt TEXT",
            'Text that the caption continues, e.g. "a photo of"; may contain {stem}, {folder} and {file_name}.',
            panel="Generation",
        ),
    ] = None,
) -> None:
    """Write a caption for every image."""
    start(
        Job(
            command="caption",
            source=source,
            decode=decode,
            model=model,
            batch=batch,
            generate=generate,
            text=text,
            template=prompt,
            questions=None,
            out=output.out,
            parts=output,
            overwrite=output.overwrite,
            retry_failed=output.retry_failed,
            quiet=report.quiet,
            verbose=report.verbose,
            as_json=report.as_json,
        ),
        dry_run=report.dry_run,
    )
