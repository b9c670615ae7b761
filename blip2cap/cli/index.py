"""`blip2cap index`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip2cap.cli.options import ReportOptions, option, option_of, with_options
from blip2cap.cli.report import print_json
from blip2cap.cli.resume import this_command
from blip2cap.cli.run import TerminalListener
from blip2cap.cli.signals import Stopped, stop_on_signal
from blip2cap.cli.terminal import clean, count, say
from blip2cap.errors import SOME_FAILED, UsageError
from blip2cap.jobs.job import skipped_phrases
from blip2cap.options import (
    DEFAULT_MATCHING_MODEL,
    BatchOptions,
    DecodeOptions,
    ModelOptions,
    OutputOptions,
    SourceOptions,
)
from blip2cap.workers.options import WorkerOptions

if TYPE_CHECKING:
    from blip2cap.index.job import IndexSummary


@with_options(without=["random_weights", "device_map", "max_pixels", "dry_run"], model=DEFAULT_MATCHING_MODEL)
def index(
    source: SourceOptions,
    model: ModelOptions,
    batch: BatchOptions,
    decode: DecodeOptions,
    workers: WorkerOptions,
    report: ReportOptions,
    out: Annotated[
        str | None,
        option("-o, --out FOLDER", "Folder of the index; made if it does not exist.", panel="Output", once=False),
    ] = None,
    retry_failed: Annotated[bool, option_of(OutputOptions, "retry_failed")] = False,
    same_inputs: Annotated[bool, option_of(OutputOptions, "same_inputs")] = False,
    allow_removal: Annotated[
        bool,
        option(
            "--allow-removal",
            "Allow the update to remove more than half of the images, because INPUTS do not hold them any more.",
            panel="Output",
        ),
    ] = False,
    check: Annotated[
        bool,
        option(
            "--check",
            "Read all files of the index, compare them with their checksums, and rebuild damaged ones.",
            panel="Output",
        ),
    ] = False,
) -> None:
    """Make an index of images, or bring it up to date.

    Only new and changed images are encoded. Images of the index that the inputs do not hold are removed from it: give
    all inputs every time. If it was stopped, the same command continues.
    """
    if out is None:
        raise UsageError("--out is missing: name the folder of the index, e.g. --out my.index.")
    from blip2cap.index.job import IndexJob
    from blip2cap.index.update import update_index

    job = IndexJob(
        index=out,
        source=source,
        model=model,
        decode=decode,
        batch=batch,
        workers=workers,
        retry_failed=retry_failed,
        same_inputs=same_inputs,
        allow_removal=allow_removal,
        check=check,
    )
    with stop_on_signal(quiet=report.quiet) as stop:
        listener = TerminalListener(report, stop)
        try:
            summary = update_index(job, listener=listener, stopped=lambda: stop.signal != 0)
        except Stopped:
            listener.say(f"Stopped. To continue: {this_command()}")
            raise
        for line in summary.damaged:
            listener.say(line)
        facts = summary_facts(summary)
        if report.as_json:
            print_json(facts)
        elif not report.quiet:
            say(_sentence(facts))
        if summary.stopped:
            listener.say(f"Stopped. The embeddings so far are safe. To continue: {this_command()}")
            raise typer.Exit(stop.exit_code)
    raise typer.Exit(0 if summary.complete else SOME_FAILED)


def summary_facts(summary: IndexSummary) -> dict[str, Any]:
    """Return the result of an update, as --json prints it."""
    stats = summary.stats
    seconds = stats.seconds if stats else 0.0
    return {
        "index": summary.index,
        "images": summary.num_images,
        "new": summary.num_new,
        "changed": summary.num_changed,
        "unchanged": summary.num_unchanged,
        "removed": summary.num_removed,
        "kept": summary.num_kept,
        "failed": summary.num_failed,
        "failed_by_error": dict(summary.failed),
        "skipped": dict(summary.skipped),
        "seconds": round(seconds, 3),
        "images_per_s": round(stats.num_images / seconds, 2) if stats and seconds else 0.0,
        "stopped": summary.stopped,
    }


def _sentence(facts: dict[str, Any]) -> str:
    changes = [f"{facts[name]} {name}" for name in ("new", "changed", "removed", "unchanged") if facts[name]]
    kept = [f"{facts['kept']} kept that were not looked for or could not be read"] if facts["kept"] else []
    kinds = ", ".join(f"{number} {error}" for error, number in facts["failed_by_error"].items())
    failed = f"{facts['failed']} failed" + (f" ({kinds})" if kinds else "")
    rate = f"; {facts['images_per_s']} images/s" if facts["images_per_s"] else ""
    parts = [*changes, *kept, failed, *skipped_phrases(facts["skipped"])]
    return f"{clean(facts['index'])}: {count(facts['images'], 'image')}: {', '.join(parts)}{rate}"
