"""`blip2cap show`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from blip2cap.cli.guard import handle_errors
from blip2cap.cli.terminal import clean, write_out
from blip2cap.errors import InputError


@handle_errors
def show(
    results: Annotated[Path, typer.Argument(metavar="FILE", help="A .jsonl file that caption or vqa has written.")],
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most N rows.")] = 50,
) -> None:
    """Show the rows of an output as a table."""
    from rich.console import Console
    from rich.table import Table

    rows, num_more = _read(results, limit)
    columns = [name for name in ("file_name", "question", "answer", "text") if rows and name in rows[0]]
    table = Table(*columns, "status")
    for row in rows:
        failed = row.get("status") != "ok"
        status = f"{row.get('status')}: {row.get('error')}" if failed else "ok"
        table.add_row(*(clean(str(row.get(name, ""))) for name in columns), clean(status))
    page = io.StringIO()  # rich itself would end the process with code 1 when `| head` closes the pipe
    console = Console(
        file=page,
        force_terminal=sys.stdout is not None and sys.stdout.isatty(),
        markup=False,
        highlight=False,
        emoji=False,
    )
    console.print(table if rows else f"{clean(str(results))} has no rows yet.")
    if num_more:
        console.print(f"... and {num_more} more rows; --limit shows more.")
    write_out(page.getvalue())


def _read(path: Path, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Read the first `limit` rows and count the others; a torn last line is none yet. Raises InputError."""
    rows: list[dict[str, Any]] = []
    num_more = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if len(rows) < limit:
                    rows.append(_parse(line, f"{path}:{len(rows) + 1}"))
                else:
                    num_more += 1
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Expected a .jsonl output.") from error
    return rows, num_more


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or "file_name" not in row:
        raise InputError(f"{where}: not a row of blip2cap. Expected the output of caption or vqa.")
    return row
