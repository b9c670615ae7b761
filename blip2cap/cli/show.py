"""`blip2cap show`."""

from __future__ import annotations

import itertools
from typing import Annotated

import typer

from blip2cap.cli.terminal import clean, encodable, page
from blip2cap.column_types import FLOAT, INTEGER, STRING
from blip2cap.rows import Row


def show(
    results: Annotated[
        str,
        typer.Argument(metavar="RESULTS", help="Output of a run: .jsonl, .parquet, a folder; `-` is stdin."),
    ],
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most N rows.")] = 50,
) -> None:
    """Show the rows of an output as a table."""
    from rich.table import Table

    from blip2cap.outputs.open import open_rows

    all_rows = open_rows(results)
    rows = list(itertools.islice(all_rows, limit))
    num_more = all_rows.count() - len(rows)
    columns = _shown(rows[0]) if rows else []
    table = Table(*columns, "status")
    for row in rows:
        status = "ok" if row.status == "ok" else f"{row.status}: {row.error}"
        table.add_row(*(_cell(row[name]) for name in columns), _cell(status))
    with page() as console:
        console.print(table if rows else f"{clean(results)} has no rows yet.")
        if num_more:
            console.print(f"... and {num_more} more rows; --limit shows more.")


def _shown(row: Row) -> list[str]:
    """Return the name of the image and the results that fit a cell: strings and numbers before the status."""
    names = row.schema.names
    results = [each for each in row.schema.columns[2 : names.index("status")] if each.type in (STRING, FLOAT, INTEGER)]
    return ["file_name", *(column.name for column in results)]


def _cell(value: object) -> str:
    return (
        encodable(clean(value))
        if isinstance(value, str)
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value)
    )
