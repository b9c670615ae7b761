"""`blip2cap embed --texts`: vectors of texts instead of images."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from blip2cap.cli.options import ReportOptions
from blip2cap.cli.report import print_json
from blip2cap.cli.signals import stop_on_signal
from blip2cap.cli.terminal import clean, say
from blip2cap.errors import OutputError, UsageError
from blip2cap.jobs.job import Listener
from blip2cap.options import Kind, ModelOptions, OutputOptions
from blip2cap.tasks.embed import Embed


class _Lines(Listener):
    """Prints messages to stderr, unless --quiet is given."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet

    def say(self, line: str) -> None:
        """Print a line."""
        if not self.quiet:
            say(clean(line))


def embed_texts(
    texts: Sequence[str], *, task: Embed, model: ModelOptions, output: OutputOptions, report: ReportOptions
) -> None:
    """Write the vectors of texts, and a summary. Raises Blip2CapError."""
    from blip2cap.jobs.texts import check_texts_output
    from blip2cap.jobs.texts import embed_texts as run

    is_stream = output.kind is Kind.STREAM
    if is_stream and report.as_json:
        raise UsageError("--json and --out - exclude each other: rows go to standard output. Leave one out.")
    if is_stream and sys.stdout is None:
        raise OutputError("--out -: standard output is closed.")
    check_texts_output(task, output)
    where = "standard output" if is_stream else clean(output.out)
    facts = {"out": output.out, "texts": len(texts), "dry_run": report.dry_run}
    seconds, started = 0.0, time.monotonic()
    if not report.dry_run:
        with stop_on_signal(quiet=report.quiet):
            run(
                texts,
                task=task,
                model=model,
                output=output,
                listener=_Lines(quiet=report.quiet),
                stdout=sys.stdout.buffer if is_stream else None,
            )
        seconds = time.monotonic() - started
    if report.as_json:
        print_json({**facts, "seconds": round(seconds, 3)})
    elif report.dry_run:
        say(f"dry run of {where}: {len(texts)} texts to do; nothing was written")
    elif not report.quiet:
        say(f"{where}: {len(texts)} texts; {seconds:.1f} s")
