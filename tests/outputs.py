"""The steps of a run with its output, without a model: for tests of journals and Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from blip2cap.outputs.base import Output
from blip2cap.outputs.files import OS_FILES, Files
from blip2cap.outputs.journal import JournalSink
from blip2cap.outputs.parquet import ParquetSink
from blip2cap.records import ImageRef
from blip2cap.rows import Row  # noqa
from blip2cap.tasks.base import Worklist
from blip2cap.tasks.caption import Caption
from tests.rows import SETTINGS, text_row

REFS = [ImageRef(path=f"/imgs/{name}", name=name) for name in ("a.jpg", "b.jpg", "c.jpg", "кот.jpg", "\udcff.jpg")]
KINDS = ["rows.jsonl", "rows.parquet"]


def open_output(path: Path, files: Files = OS_FILES, **options: Any) -> Output:
    kind = ParquetSink if path.suffix == ".parquet" else JournalSink
    return kind(path, files=files, **options)


def run(
    path: Path,
    refs: Iterable[ImageRef],
    text: str,
    *,
    files: Files,
    failing: str = "",
    safe: list[str] | None = None,
    stopped: bool = False,
    made_with: Mapping[str, object] = SETTINGS,
    **options: bool,
) -> None:
    """Do the steps of a run, two images at a time; `safe` gets the names whose rows must be on the disk."""
    sink = open_output(path, files, **options)
    try:
        tasks = list(Worklist(Caption()).requests(refs, sink.finished))
        rows = [
            text_row(
                file_name=task.ref.file_name,
                file_name_b64=task.ref.file_name_b64,
                text="" if task.ref.name == failing else text,
                status="failed" if task.ref.name == failing else "ok",
                error="truncated" if task.ref.name == failing else "",
            )
            for task in tasks
        ]
        if rows:
            sink.begin(made_with)
        for start in range(0, len(rows), 2):
            sink.write(rows[start : start + 2])
            if safe is not None:
                safe += [row.file_name for row in rows[start : start + 2]]
        sink.finish(stopped=stopped)
    finally:
        sink.close()


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def names_in(path: Path, *, retried: bool = False) -> set[str]:
    """Names of all rows of an output, in its journal too; if they are `retried`, without failed ones."""
    journal = path.with_name(f"{path.name}.jsonl")
    rows = [row for part in (path, journal) if part.exists() for row in rows_of(part)]
    return {row["file_name"] for row in rows if row["status"] == "ok" or not retried}
