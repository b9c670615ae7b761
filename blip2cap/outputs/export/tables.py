"""The rows as a table or unchanged: CSV, Parquet, JSONL."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import IO, Any

from blip2cap.outputs.export.item import Item
from blip2cap.outputs.export.writer import FileWriter
from blip2cap.records import Row

ROW_GROUP = 8192
"""Rows in memory, and in one row group."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Characters that begin a formula in a spreadsheet."""


def _no_row() -> dict[str, Any]:
    """Return the columns of an output that has no row to name them."""
    return Row(file_name="", file_name_b64="").as_dict()


def csv_writer(file: IO[bytes]) -> Any:
    """Return Python's csv writer, in UTF-8."""
    return csv.writer(codecs.getwriter("utf-8")(file))


def cell(value: Any) -> Any:
    """Return a value of CSV: a list becomes JSON, and a text that a spreadsheet would run as a formula is quoted."""
    if isinstance(value, list):
        value = json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


class Csv(FileWriter):
    """All columns but status and error, which are the same in every row."""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open the file; its first line comes with the first row, which names the columns."""
        with super().writing():
            self._csv, self._has_header = csv_writer(self.file), False
            yield
            if not self._has_header:
                self._write_header(_no_row())

    def write(self, item: Item) -> str:
        """Write one line."""
        columns = item.row.as_dict()
        if not self._has_header:
            self._write_header(columns)
        columns["text" if "text" in columns else "answer"] = item.text
        self._csv.writerow(cell(value) for name, value in columns.items() if name not in ("status", "error"))
        return ""

    def _write_header(self, columns: Mapping[str, Any]) -> None:
        renamed = {"text": self.options.column or "text", "answer": self.options.column or "answer"}
        self._csv.writerow(renamed.get(name, name) for name in columns if name not in ("status", "error"))
        self._has_header = True


class Jsonl(FileWriter):
    """The rows unchanged."""

    def write(self, item: Item) -> str:
        """Write one line."""
        self.file.write(item.row.as_json())
        return ""


@contextmanager
def parquet_rows(
    file: IO[bytes], no_row: Mapping[str, Any], metadata: Mapping[bytes, bytes] | None = None
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that adds a row to typed Parquet; all rows have the same columns, `no_row` if there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[Mapping[str, Any]] = []
    writer: Any = None
    with ExitStack() as stack:

        def flush() -> None:
            nonlocal writer
            if writer is None:
                schema = arrow_schema(rows[0] if rows else no_row).with_metadata(metadata)
                writer = stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))
                rows.clear()

        def add(columns: Mapping[str, Any]) -> None:
            rows.append(columns)
            if len(rows) == ROW_GROUP:
                flush()

        yield add
        flush()


def arrow_schema(columns: Mapping[str, Any]) -> Any:
    """Return the types of the columns of a row."""
    from blip2cap.outputs.schema import schema

    return schema(tuple(columns))


class Parquet(FileWriter):
    """The rows unchanged, typed, zstd, in their order; their manifest is in the metadata of the schema."""

    needs_count = True

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open the file."""
        metadata, no_row = {}, _no_row()
        if self.manifest is not None:
            counts = {"ok": self.num_items, "failed": {}}
            metadata = {b"blip2cap": replace(self.manifest, counts=counts).as_json()}
        with super().writing(), parquet_rows(self.file, no_row, metadata) as self._add:
            yield

    def write(self, item: Item) -> str:
        """Add one row."""
        self._add(item.row.as_dict())
        return ""
