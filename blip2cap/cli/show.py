"""`blip2cap show`."""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from blip2cap.cli import histogram
from blip2cap.cli.terminal import cell, clean, encodable, page, write_out
from blip2cap.column_types import FLOAT, INTEGER, STRING, Vector
from blip2cap.errors import UsageError
from blip2cap.rows import Row

if TYPE_CHECKING:
    from blip2cap.outputs.read import Results

_SCORE = "itm"
"""Column of --worst and --best, unless --by is given."""
_NUM_SHOWN = 3
"""Number of numbers of a vector that a cell shows."""


def show(
    results: Annotated[
        str,
        typer.Argument(metavar="RESULTS", help="Output of a run: .jsonl, .parquet, a folder; `-` is stdin."),
    ],
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most N rows.")] = 50,
    worst: Annotated[
        int | None, typer.Option("--worst", min=1, metavar="N", help="The N ok rows with the lowest number in --by.")
    ] = None,
    best: Annotated[
        int | None, typer.Option("--best", min=1, metavar="N", help="The N ok rows with the highest number in --by.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="COLUMN", help="Column of --worst and --best. Default: itm.", show_default=False),
    ] = None,
    histogram_of: Annotated[
        str | None,
        typer.Option(
            "--histogram",
            metavar="COLUMN",
            help="Distribution of the numbers in COLUMN, and what a cut-off keeps.",
        ),
    ] = None,
) -> None:
    """Show the rows of an output as a table.

    Or those with the lowest or highest number in a column, or a histogram of its numbers.
    """
    from blip2cap.outputs.open import open_rows

    if sum(each is not None for each in (worst, best, histogram_of)) > 1:
        raise UsageError("--worst, --best and --histogram exclude each other. Leave all but one out.")
    if by is not None and worst is None and best is None:
        raise UsageError(f"--by {by} has no effect without --worst or --best. Add one of them.")
    rows = open_rows(results)
    if histogram_of is not None:
        _print_histogram(rows, histogram_of)
    elif worst is not None or best is not None:
        _print_extremes(rows, worst or best or 0, by or _SCORE, lowest=worst is not None)
    else:
        shown = list(itertools.islice(rows, limit))
        num_more = rows.count() - len(shown)
        _print(shown, rows.given, f"... and {num_more} more rows; --limit shows more." if num_more else "")


def _print_extremes(rows: Results, count: int, by: str, *, lowest: bool) -> None:
    """Print the rows with the lowest or the highest numbers; of equal ones, the first."""
    ok = _OkRows(rows, by)
    choose = heapq.nsmallest if lowest else heapq.nlargest
    found = choose(count, ok, key=lambda row: row[by])
    _print(found, rows.given, f"the {'lowest' if lowest else 'highest'} {by} of {ok.num_ok} ok rows")


def _print_histogram(rows: Results, name: str) -> None:
    ok = _OkRows(rows, name)
    values = array("d", (row[name] for row in ok))
    lines = (
        histogram.lines(values, name=name, num_failed=ok.num_failed) if values else [f"{clean(rows.given)}: no row."]
    )
    write_out("".join(f"{line}\n" for line in lines))


class _OkRows:
    """The ok rows of an output; all rows are counted. Raises UsageError if they have no such column of numbers."""

    def __init__(self, rows: Results, column: str) -> None:
        self.rows, self.column = rows, column
        self.num_ok = self.num_failed = 0

    def __iter__(self) -> Iterator[Row]:
        for row in self.rows:
            numbers = [each.name for each in row.schema.columns if each.type in (FLOAT, INTEGER)]
            if self.column not in numbers:
                raise UsageError(f"{self.rows.given}: no column {self.column} of numbers. It has {', '.join(numbers)}.")
            if row.status == "ok":
                self.num_ok += 1
                yield row
            else:
                self.num_failed += 1


def _print(rows: list[Row], given: str, below: str) -> None:
    from rich.table import Table

    columns = _shown(rows[0]) if rows else []
    table = Table(*columns, "status")
    for row in rows:
        status = "ok" if row.status == "ok" else f"{row.status}: {row.error}"
        table.add_row(*(_cell(row[name]) for name in columns), _cell(status))
    with page() as console:
        console.print(table if rows else f"{clean(given)} has no rows yet.")
        if rows and below:
            console.print(below)


def _shown(row: Row) -> list[str]:
    """Return the name of the image and the results that fit a cell: all but lists, before the status."""
    names = row.schema.names
    results = [
        column.name
        for column in row.schema.columns[2 : names.index("status")]
        if column.type in (STRING, FLOAT, INTEGER) or isinstance(column.type, Vector)
    ]
    return ["file_name", *results]


def _cell(value: object) -> str:
    if isinstance(value, str):
        return cell(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    shape = getattr(value, "shape", None)
    if shape is None:
        return str(value)
    numbers = [f"{number:.3g}" for number in itertools.islice(value.flat, _NUM_SHOWN)]  # type: ignore[attr-defined]
    return encodable(f"{list(shape)} {' '.join(numbers)} ...")
