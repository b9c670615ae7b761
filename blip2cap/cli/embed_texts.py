"""`blip2cap embed --texts`: vectors of texts instead of images."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from blip2cap.cli.options import ReportOptions
from blip2cap.cli.report import print_json
from blip2cap.cli.run import TerminalListener, check_stream
from blip2cap.cli.signals import stop_on_signal
from blip2cap.cli.terminal import clean, say
from blip2cap.options import Kind, ModelOptions, OutputOptions
from blip2cap.tasks.embed import Embed


def embed_texts(
    texts: Sequence[str], *, task: Embed, model: ModelOptions, output: OutputOptions, report: ReportOptions
) -> None:
    """Write the vectors of texts, and a summary. Raises Blip2CapError."""
    from blip2cap.jobs.texts import check_texts_output
    from blip2cap.jobs.texts import embed_texts as run

    is_stream = output.kind is Kind.STREAM
    check_stream(output.kind, report)
    check_texts_output(task, output)
    where = "standard output" if is_stream else clean(output.out)
    facts = {"out": output.out, "texts": len(texts), "dry_run": report.dry_run}
    seconds, started = 0.0, time.monotonic()
    if not report.dry_run:
        with stop_on_signal(quiet=report.quiet) as stop:
            run(
                texts,
                task=task,
                model=model,
                output=output,
                listener=TerminalListener(report, stop),
                stdout=sys.stdout.buffer if is_stream else None,
            )
        seconds = time.monotonic() - started
    if report.as_json:
        print_json({**facts, "seconds": round(seconds, 3)})
    elif report.dry_run:
        say(f"dry run of {where}: {len(texts)} texts to do; nothing was written")
    elif not report.quiet:
        say(f"{where}: {len(texts)} texts; {seconds:.1f} s")
