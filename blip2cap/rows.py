"""Rows and their columns: one schema for journals, Parquet files, parts, readers and exports."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blip2cap.column_types import INTEGER, STRING, ColumnType, Vector

if TYPE_CHECKING:
    import pyarrow as pa

_STEERING = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""DEL and C1 controls, line separators of Unicode, and characters that change the direction of text."""


@dataclass(frozen=True, slots=True)
class Column:
    """Name and type of a column."""

    name: str
    type: ColumnType = STRING


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Row:
    """One line of an output: a result about one image, or the reason why there is none. Equal if their lines are."""

    schema: Schema
    columns: Mapping[str, Any]
    """Values in the order of the schema."""

    def __getitem__(self, name: str) -> Any:
        """Return the value of a column."""
        return self.columns[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Row) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash(self.as_json())

    def __repr__(self) -> str:
        return f"Row({', '.join(f'{name}={value!r}' for name, value in self.columns.items())})"

    @property
    def file_name(self) -> str:
        """Name of the image; undecodable bytes as backslash escapes."""
        return str(self.columns["file_name"])

    @property
    def file_name_b64(self) -> str:
        """Bytes of a name with such escapes in base64, else ""."""
        return str(self.columns["file_name_b64"])

    @property
    def status(self) -> str:
        """Status of the row: ok or failed."""
        return str(self.columns["status"])

    @property
    def error(self) -> str:
        """One of `records.FAILURES`, "" for an ok row."""
        return str(self.columns["error"])

    @property
    def width(self) -> int:
        """Width of the image in pixels as displayed, 0 if unknown."""
        return int(self.columns["width"])

    @property
    def height(self) -> int:
        """Height of the image in pixels as displayed, 0 if unknown."""
        return int(self.columns["height"])

    @property
    def question(self) -> str | None:
        """Question that the row answers; None without that column."""
        return self.columns.get("question")

    @property
    def text(self) -> str:
        """The caption or the answer; "" without either column."""
        return str(self.columns.get("text", self.columns.get("answer", "")))

    @property
    def answer(self) -> str:
        """The same as `text`."""
        return self.text

    @property
    def texts(self) -> tuple[str, ...] | None:
        """All captions, the best beam first; None in runs with one caption for each image."""
        return None if "texts" not in self.columns else tuple(self.columns["texts"])

    @property
    def flag(self) -> str | None:
        """Verdict of the loop guard; None in runs without it."""
        return self.columns.get("flag")

    @property
    def finish_reason(self) -> str:
        """stop, length, or "" without a text."""
        return str(self.columns.get("finish_reason", ""))

    @property
    def num_tokens(self) -> int:
        """Number of generated tokens."""
        return int(self.columns.get("num_tokens", 0))

    @property
    def key(self) -> str:
        """Key by which a resumed run finds this row."""
        return row_key(self.file_name, self.file_name_b64, self.columns.get(self.schema.key))

    def as_dict(self) -> dict[str, Any]:
        """Return the columns in their order, as JSON values."""
        return {column.name: column.type.to_json(self.columns[column.name]) for column in self.schema.columns}

    def as_json(self) -> bytes:
        """Return one JSON line with its newline; other line ends, and characters that control a terminal, escaped."""
        line = json.dumps(self.as_dict(), ensure_ascii=False)
        return _STEERING.sub(lambda match: f"\\u{ord(match.group()):04x}", line).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns of an output, in their order."""

    columns: tuple[Column, ...]
    key: str = ""
    """Name of the column that tells the rows of an image apart; "" if every image has one row."""

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]

    @property
    def vectors(self) -> list[str]:
        """Names of the columns with arrays."""
        return [column.name for column in self.columns if isinstance(column.type, Vector)]

    def num_rows(self, most: int, *, num_bytes: int = 256_000_000) -> int:
        """Return how many rows to hold in memory at once: `most`, or fewer if they would take more than `num_bytes`."""
        return max(1, min(most, num_bytes // sum(column.type.num_bytes for column in self.columns)))

    def row(self, **values: Any) -> Row:
        """Make a row; columns that are not given hold the empty value of their type.

        Raises TypeError or ValueError for a value that is not of the type of its column, or not finite: readers must be
        able to read what is written.
        """
        columns: dict[str, Any] = {}
        for each in self.columns:
            if each.name in values:
                each.type.check(columns.setdefault(each.name, values.pop(each.name)))
            else:
                columns[each.name] = each.type.empty
        assert not values, f"columns that the schema does not have: {sorted(values)}"
        return Row(self, columns)

    def parse(self, columns: Any) -> Row:
        """Make a row of a parsed JSON line or a row of a Parquet file; columns that are not in the schema are ignored.

        Raises TypeError, KeyError or ValueError if it does not fit this schema.
        """
        if not isinstance(columns, dict):
            raise TypeError("not an object")
        row = Row(self, {each.name: each.type.from_json(columns[each.name]) for each in self.columns})
        if row.status not in ("ok", "failed"):
            raise ValueError(f"status {row.status!r}")
        if row.file_name_b64:
            raw = base64.b64decode(row.file_name_b64, validate=True)
            if raw.decode("utf-8", "backslashreplace") != row.file_name:
                raise ValueError("file_name and file_name_b64 disagree")
        if "\0" in row.file_name or not row.file_name:
            raise ValueError(f"file_name {row.file_name!r}")
        return row

    def arrow(self) -> pa.Schema:
        """Return the schema of a Parquet file."""
        import pyarrow as pa

        return pa.schema([pa.field(each.name, each.type.arrow(), nullable=False) for each in self.columns])

    def batch(self, rows: Iterable[Row]) -> pa.RecordBatch:
        """Make a record batch of rows."""
        import pyarrow as pa

        rows = list(rows)
        arrays = [each.type.to_arrow([row.columns[each.name] for row in rows]) for each in self.columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.arrow())


def make_schema(*results: Column, details: Sequence[Column] = (), key: str = "") -> Schema:
    """Make the schema of a task: the columns of every output, with `results` before the status and `details` after."""
    return Schema(
        (
            Column("file_name"),
            Column("file_name_b64"),
            *results,
            Column("status"),
            Column("error"),
            *details,
            Column("width", INTEGER),
            Column("height", INTEGER),
        ),
        key,
    )


def row_key(file_name: str, file_name_b64: str, label: str | None) -> str:
    """Return the key of a row, which is unique in its output; file names cannot contain NUL."""
    return f"{file_name_b64}\0b64\0{label or ''}" if file_name_b64 else f"{file_name}\0\0{label or ''}"
