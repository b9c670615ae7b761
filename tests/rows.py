"""Rows for tests of outputs, and short ways to write and read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip2cap.outputs.journal import JournalSink
from blip2cap.rows import Row
from blip2cap.tasks.text import text_schema

SETTINGS = {"command": "caption", "model": "tiny", "prompt": ""}


def text_row(
    *,
    question: str | None = None,
    text: str = "",
    texts: tuple[str, ...] | None = None,
    flag: str | None = None,
    **columns: Any,
) -> Row:
    """Make a row of a caption, or of an answer if there is a `question`; `texts` and `flag` are columns if given."""
    schema = text_schema(question=question is not None, texts=texts is not None, flag=flag is not None)
    values: dict[str, Any] = {"text": text} if question is None else {"question": question, "answer": text}
    values |= {name: value for name, value in (("texts", texts), ("flag", flag)) if value is not None}
    return schema.row(**{"status": "ok", **values, **columns})


def row(number: int, text: str = "a cat", **columns) -> Row:
    return text_row(file_name=f"{number}.jpg", file_name_b64="", text=text, width=4, height=3, **columns)


def failed(number: int) -> Row:
    return row(number, text="", status="failed", error="truncated")


def write(path: Path, *rows: Row, overwrite: bool = False, made_with: Mapping[str, object] = SETTINGS) -> None:
    sink = JournalSink(path, overwrite=overwrite)
    try:
        sink.begin(made_with)
        sink.write(rows)
        sink.finish()
    finally:
        sink.close()


def columns_of(path: Path) -> list[dict[str, object]]:
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    return [json.loads(line) for line in lines]


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())
