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
from blip2cap.outputs.parquet_table import written_as
from blip2cap.rows import Row, Schema
from blip2cap.tasks.text import text_schema

ROW_GROUP = 8192
"""Rows in memory, and in one row group; fewer if they hold large vectors."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Characters that begin a formula in a spreadsheet."""


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

    keeps_rows = True

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open the file; its first line comes with the first row, which names the columns."""
        with super().writing():
            self._csv, self._has_header = csv_writer(self.file), False
            yield
            if not self._has_header:
                schema = self.manifest.schema if self.manifest else text_schema()
                self._write_header(schema.row().as_dict())

    def write(self, item: Item) -> str:
        """Write one line."""
        columns = item.row.as_dict()
        if not self._has_header:
            self._write_header(columns)
        columns |= {name: item.text for name in ("text", "answer") if name in columns}
        self._csv.writerow(cell(value) for name, value in columns.items() if name not in ("status", "error"))
        return ""

    def _write_header(self, columns: Mapping[str, Any]) -> None:
        renamed = {"text": self.options.column or "text", "answer": self.options.column or "answer"}
        self._csv.writerow(renamed.get(name, name) for name in columns if name not in ("status", "error"))
        self._has_header = True


class Jsonl(FileWriter):
    """The rows unchanged."""

    keeps_rows = True

    def write(self, item: Item) -> str:
        """Write one line."""
        self.file.write(item.row.as_json())
        return ""


@contextmanager
def parquet_rows(
    file: IO[bytes], schema: Schema, metadata: Mapping[bytes, bytes] | None = None
) -> Iterator[Callable[[Row], None]]:
    """Yield a function that adds a row to a Parquet file; `schema` says the columns where there is no row to do so."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[Row] = []
    writer: Any = None
    with ExitStack() as stack:

        def flush() -> None:
            nonlocal writer
            if writer is None:
                of_rows = rows[0].schema if rows else schema
                arrow = of_rows.arrow().with_metadata(metadata)
                writer = stack.enter_context(pq.ParquetWriter(file, arrow, **written_as(of_rows)))
            if rows:
                batch = rows[0].schema.batch(rows)
                writer.write_table(pa.Table.from_batches([batch]).replace_schema_metadata(metadata))
                rows.clear()

        def add(row: Row) -> None:
            rows.append(row)
            if len(rows) == row.schema.num_rows(ROW_GROUP):
                flush()

        yield add
        flush()


class Parquet(FileWriter):
    """The rows unchanged, typed, zstd, in their order; their manifest is in the metadata of the schema."""

    keeps_rows = needs_count = True

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open the file."""
        metadata, schema = {}, text_schema()
        if self.manifest is not None:
            counts = {"ok": self.num_items, "failed": {}}
            metadata = {b"blip2cap": replace(self.manifest, counts=counts).as_json()}
            schema = self.manifest.schema
        with super().writing(), parquet_rows(self.file, schema, metadata) as self._add:
            yield

    def write(self, item: Item) -> str:
        """Add one row."""
        self._add(item.row)
        return ""
