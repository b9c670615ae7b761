"""`blip2cap vqa`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from blip2cap.cli.config import read_lines
from blip2cap.cli.options import ReportOptions, option, with_options
from blip2cap.cli.run import start
from blip2cap.errors import UsageError
from blip2cap.generate_options import ANSWER_NEW_TOKENS, GenerateOptions, TextOptions
from blip2cap.jobs.job import Job
from blip2cap.options import BatchOptions, DecodeOptions, ModelOptions, OutputOptions, SourceOptions
from blip2cap.scale.options import RayOptions
from blip2cap.server_options import ServerOptions
from blip2cap.tasks.vqa import Vqa
from blip2cap.workers.options import WorkerOptions


@with_options(without=["random_weights", "num_captions"], out="answers.jsonl", max_new_tokens=ANSWER_NEW_TOKENS)
def vqa(
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
    questions: Annotated[
        list[str] | None,
        option("-q, --question TEXT", "Question to ask about every image; repeatable.", panel="Input", once=False),
    ] = None,
    questions_file: Annotated[
        Path | None, option("--questions FILE", "Read questions from FILE, one per line.", panel="Input")
    ] = None,
    template: Annotated[
        str | None,
        option(
            "--template TEXT",
            "Prompt of a question; must contain {question}. If left out, the one the model's family expects.",
            panel="Generation",
        ),
    ] = None,
) -> None:
    """Answer questions about every image.

    Every question is asked about every image. An image is encoded once, however many questions there are.
    """
    asked = tuple(questions or ())
    if questions_file:
        asked += read_lines(questions_file, flag="--questions", noun="question")
    if not asked:
        raise UsageError("no question given. Ask with -q TEXT, once or more often, or --questions FILE.")
    task = Vqa(questions=asked, template=template, generate=generate, text=text)
    model = replace(model, server=server)
    job = Job(task=task, source=source, output=output, model=model, decode=decode, batch=batch, workers=workers)
    start(job, report, ray)
