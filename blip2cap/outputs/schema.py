"""Rows as typed columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from blip2cap.records import Row

_TYPES: Mapping[str, Any] = {
    "texts": pa.list_(pa.field("element", pa.string(), nullable=False)),
    # int64, as readers of JSON take numbers to be.
    "num_tokens": pa.int64(),
    "width": pa.int64(),
    "height": pa.int64(),
}
"""Of columns that are no text."""


def schema(names: Sequence[str]) -> pa.Schema:
    """Give columns of a row their types; none is ever null."""
    return pa.schema([pa.field(name, _TYPES.get(name, pa.string()), nullable=False) for name in names])


def schema_of(settings: Mapping[str, Any]) -> pa.Schema:
    """Return the columns that the rows of a run with these settings have, in their order."""
    row = Row(
        file_name="",
        file_name_b64="",
        question="" if settings.get("command") == "vqa" else None,
        texts=() if settings.get("num_captions", 1) > 1 else None,
        flag="" if settings.get("loop_guard") else None,
    )
    return schema(tuple(row.as_dict()))


def table(rows: Sequence[Mapping[str, Any]], metadata: Mapping[bytes, bytes]) -> pa.Table:
    """Make a table of at least one row, as `Row.as_dict` gives them; all have the same columns."""
    return pa.Table.from_pylist(list(rows), schema=schema(tuple(rows[0])).with_metadata(dict(metadata)))
