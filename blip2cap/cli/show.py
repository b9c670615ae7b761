"""`blip2cap show`."""

from __future__ import annotations

import io
import itertools
import sys
from typing import Annotated

import typer

from blip2cap.cli.guard import handle_errors
from blip2cap.cli.terminal import clean, write_out
from blip2cap.outputs.read import Results


@handle_errors
def show(
    results: Annotated[
        str,
        typer.Argument(metavar="RESULTS", help="What caption or vqa wrote: .jsonl, .parquet, a folder; `-` is stdin."),
    ],
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most N rows.")] = 50,
) -> None:
    """Show the rows of an output as a table."""
    from rich.console import Console
    from rich.table import Table

    all_rows = Results(results)
    rows = [row.as_dict() for row in itertools.islice(all_rows, limit)]
    num_more = all_rows.count() - len(rows)
    columns = [name for name in ("file_name", "question", "answer", "text") if rows and name in rows[0]]
    table = Table(*columns, "status")
    for row in rows:
        status = "ok" if row["status"] == "ok" else f"{row['status']}: {row['error']}"
        table.add_row(*(clean(row[name]) for name in columns), clean(status))
    page = io.StringIO()  # rich itself would end the process with code 1 when `| head` closes the pipe
    console = Console(
        file=page,
        force_terminal=sys.stdout is not None and sys.stdout.isatty(),
        markup=False,
        highlight=False,
        emoji=False,
    )
    console.print(table if rows else f"{clean(results)} has no rows yet.")
    if num_more:
        console.print(f"... and {num_more} more rows; --limit shows more.")
    write_out(page.getvalue())
