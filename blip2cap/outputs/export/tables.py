"""The rows as a table or as they are: CSV, Parquet, JSONL."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from typing import Any

from blip2cap.outputs.export.item import Item
from blip2cap.outputs.export.writer import FileWriter
from blip2cap.rows import Row
from blip2cap.tasks.text import text_schema

_BATCH = 8192
"""Rows in memory, and in one row group."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


def cell(value: str) -> str:
    """Write a value so that a spreadsheet does not run it."""
    return f"'{value}" if value.startswith(_FORMULA) else value


class CsvLines:
    """Encodes lines of CSV in UTF-8."""

    def __init__(self) -> None:
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text)

    def line(self, values: list[Any]) -> bytes:
        """Encode one line."""
        self._writer.writerow(values)
        line = self._text.getvalue()
        self._text.seek(0)
        self._text.truncate()
        return line.encode()


def _as_cell(value: Any) -> Any:
    """Make a string harmless, and a list JSON."""
    if isinstance(value, list):
        value = json.dumps(value, ensure_ascii=False)
    return cell(value) if isinstance(value, str) else value


class Csv(FileWriter):
    """All columns but status and error, which every row would have alike."""

    def open(self) -> None:
        """Begin the file; its first line comes with its first row, which says what the columns are."""
        super().open()
        self._lines = CsvLines()
        self._has_header = False

    def write(self, item: Item) -> str:
        """Write one line."""
        columns = _columns(item.row)
        columns["text" if "text" in columns else "answer"] = item.text
        self._begin(columns)
        self.file.write(self._lines.line([_as_cell(value) for value in columns.values()]))
        return ""

    def finish(self) -> None:
        """Write at least the names of the columns."""
        self._begin(_columns(text_schema().row()))
        super().finish()

    def _begin(self, columns: dict[str, Any]) -> None:
        if not self._has_header:
            names = [(self.options.column or name) if name in ("text", "answer") else name for name in columns]
            self.file.write(self._lines.line(names))
            self._has_header = True


def _columns(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.as_dict().items() if name not in ("status", "error")}


class Jsonl(FileWriter):
    """The rows as they are."""

    def write(self, item: Item) -> str:
        """Write one line."""
        self.file.write(item.row.as_json())
        return ""


class ParquetRows:
    """Collects rows and writes them to an open file as typed Parquet."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None

    def add(self, columns: dict[str, Any]) -> None:
        """Add one row; all have the same columns."""
        self._begin(columns)
        self._rows.append(columns)
        if len(self._rows) == _BATCH:
            self._flush()

    def finish(self, no_row: dict[str, Any]) -> None:
        """Write the rest and the footer; `no_row` says what the columns are if there was none."""
        self._begin(no_row)
        self._flush()
        self._writer.close()

    def close(self) -> None:
        """End the writer, which would do so when nobody expects it."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()

    def _begin(self, columns: dict[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            self._schema = pa.schema([(name, _type(value)) for name, value in columns.items()])
            self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()


def _type(value: Any) -> Any:
    import pyarrow as pa

    if isinstance(value, list):
        return pa.list_(pa.string())
    return pa.int64() if isinstance(value, int) else pa.string()


class Parquet(FileWriter):
    """The rows as they are, typed, zstd, in their order."""

    def open(self) -> None:
        """Begin the file."""
        super().open()
        self._parquet = ParquetRows(self.file)

    def write(self, item: Item) -> str:
        """Add one row."""
        self._parquet.add(item.row.as_dict())
        return ""

    def finish(self) -> None:
        """Write the footer, and give the file its name."""
        self._parquet.finish(text_schema().row().as_dict())
        super().finish()

    def close(self) -> None:
        """Remove what has not been finished."""
        self._parquet.close()
        super().close()
