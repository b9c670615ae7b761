"""`blip2cap evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from blip2cap.cli.evaluate_report import facts_of, print_result, print_worst, section_of
from blip2cap.cli.hits import check_targets, write_html
from blip2cap.cli.options import ReportOptions, on_command_line, option, with_options
from blip2cap.cli.progress import Progress, Silent, choose_progress
from blip2cap.cli.report import Failures, print_json
from blip2cap.cli.signals import stop_on_signal
from blip2cap.cli.terminal import clean
from blip2cap.errors import SOME_FAILED, ImageError, UsageError
from blip2cap.jobs.job import Listener
from blip2cap.options import DecodeOptions, ModelOptions
from blip2cap.records import ImageRef

if TYPE_CHECKING:
    from blip2cap.engine.run import RunStats
    from blip2cap.evaluate.run import Evaluated, Evaluator

_ON_A_SHEET = 20
"""Number of items on a sheet, unless --worst is given."""


@with_options(
    only=[
        *("dtype", "device", "revision", "decode", "threads", "allow_http", "timeout", "isolate"),
        *("quiet", "verbose", "json"),
    ],
)
def evaluate(
    context: typer.Context,
    decode: DecodeOptions,
    model: ModelOptions,
    report: ReportOptions,
    output: Annotated[
        str,
        option(
            "OUTPUT",
            "What to evaluate: an output of `caption` or `vqa`, a .json list of results as COCO and VQA take them, or "
            "an index.",
            panel="Input",
        ),
    ],
    references: Annotated[
        list[str] | None,
        option(
            "--references FILE",
            "What it should be: COCO, VQA, LAVIS or kohya .json, .jsonl, .csv, .parquet, a folder of .txt files, or "
            "rows of blip2cap; repeatable, for questions and annotations in two files.",
            panel="Input",
            once=False,
        ),
    ] = None,
    itm: Annotated[
        bool,
        option("--itm", "Score captions by an image-text matching model instead, without references.", panel="Input"),
    ] = False,
    only_matched: Annotated[
        bool,
        option(
            "--only-matched",
            "Evaluate what has references, and say how much was left out. Without it, that is an error.",
            panel="Input",
        ),
    ] = False,
    metrics: Annotated[
        list[str] | None,
        option(
            "--metrics NAME",
            "Also METEOR or SPICE, by the Java programs of pycocoevalcap; repeatable.",
            panel="Output",
            once=False,
        ),
    ] = None,
    compare: Annotated[
        str | None,
        option("--compare OTHER", "Evaluate another output too, and the differences.", panel="Input", once=False),
    ] = None,
    images: Annotated[
        str | None,
        option(
            "--images DIR",
            "Folder of the images, for --itm and --html. Left out: the folder that the run has read.",
            panel="Input",
        ),
    ] = None,
    rerank: Annotated[
        int | None,
        option(
            "--rerank N",
            "Of an index: also sort the best N of every text and image again, by the match head.",
            panel="Output",
        ),
    ] = None,
    worst: Annotated[
        int | None, option("--worst N", "Show the N items with the lowest scores.", panel="Output")
    ] = None,
    html: Annotated[
        str | None,
        option("--html FILE", "Write the worst, with their images, to a page. 20 of them.", panel="Output", once=False),
    ] = None,
    overwrite: Annotated[
        bool, option("--overwrite", "Replace an existing file of --html.", panel="Output", once=False)
    ] = False,
    model_name: Annotated[
        str | None,
        option(
            "-m, --model NAME",
            "Matching model of --itm; Salesforce/blip2-itm-vit-g if left out. Of an index: its model, if it is in "
            "another folder now.",
            panel="Model",
            once=False,
        ),
    ] = None,
) -> None:
    """Score captions, answers or an index.

    Against references, or captions by a matching model. Captions: BLEU, ROUGE-L, CIDEr-D. Answers: VQA accuracy, exact
    match, and for closed sets of answers balanced accuracy and which answer was given for which. An index: recall@1, 5,
    10, text to image and image to text. With 95 % intervals by bootstrap.
    """
    if worst is not None and worst < 1:
        raise UsageError(f"--worst {worst}: must be 1 or more. Leave it out to see none.")
    if images is not None and not itm and html is None:
        raise UsageError(f"--images {images}: no image is read here. Leave it out, or add --itm or --html.")
    reads_images = itm or html is not None or rerank is not None
    if not reads_images and (flag := next(on_command_line(context, decode), None)):
        raise UsageError(f"{flag} has no effect without --itm, --rerank or --html: no image is read. Leave it out.")
    check_targets(None, html, null=False, overwrite=overwrite)
    from blip2cap.evaluate.run import EvaluationJob, Evaluator

    job = EvaluationJob(
        output=output,
        references=tuple(references or ()),
        metrics=tuple(metrics or ()),
        compare=compare,
        only_matched=only_matched,
        itm=itm,
        rerank=rerank,
        model_name=model_name,
        model=model,
        images=images,
        decode=decode,
    )
    if not (job.itm or job.is_index) and (flag := next(on_command_line(context, model), None)):
        raise UsageError(f"{flag} has no effect without --itm: no model is needed here. Leave it out.")
    listener = _TerminalListener(report)
    with stop_on_signal(quiet=report.quiet):
        evaluator = Evaluator(job, listener=listener)
        try:
            found = evaluator.run()
        finally:
            listener.end()
        if report.as_json:
            print_json(facts_of(found, worst))
        else:
            print_result(found)
            if worst is not None and html is None:
                print_worst(found.own, worst)
        num_missing = 0
        if html is not None:
            num_missing = _write_html(html, found, evaluator, worst or _ON_A_SHEET, quiet=report.quiet)
    if listener.failures.count or num_missing:
        raise typer.Exit(SOME_FAILED)


class _TerminalListener(Listener):
    """Prints messages and progress to stderr; the display begins with the first images."""

    def __init__(self, options: ReportOptions) -> None:
        self.quiet = options.quiet
        self._progress: Progress = Silent()
        self._is_begun = False
        self.failures = Failures(lambda line: self._progress.say(line), verbose=options.verbose, quiet=options.quiet)

    def say(self, line: str) -> None:
        """Print a line, unless --quiet is given."""
        if not self.quiet:
            self._progress.say(clean(line))

    def progress(self, stats: RunStats) -> None:
        """Update the display."""
        if not self._is_begun:
            self._progress = choose_progress(quiet=self.quiet, rows_on_terminal=False, count=None)
            self._is_begun = True
        self._progress.update(stats.num_images, stats.num_failed)

    def failure(self, ref: ImageRef, error: ImageError) -> None:
        """Name the image, if it is among the first that fail."""
        self.failures.add(ref, error)

    def end(self) -> None:
        """Remove the display."""
        self._progress.close()
        self._progress = Silent()
        self.failures.close()


def _write_html(html: str, found: Evaluated, evaluator: Evaluator, count: int, *, quiet: bool) -> int:
    """Write a sheet with the worst items; return the number of images without a picture."""
    section = section_of(found.own, count, evaluator.refs(found.own))
    title = f"Evaluation of {found.own.given}"
    note = f"{len(found.own.items):,} {found.own.noun}s"
    return write_html(html, [section], title=title, note=note, decode=evaluator.job.decode, quiet=quiet)
