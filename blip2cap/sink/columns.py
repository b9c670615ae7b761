"""Rows as typed columns, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

_TYPES: Mapping[str, Any] = {
    "texts": pa.list_(pa.string()),
    "num_tokens": pa.int32(),
    "width": pa.int32(),
    "height": pa.int32(),
}
"""Of columns that are no text."""


def schema(names: Sequence[str]) -> pa.Schema:
    """Give columns of a row their types; none is ever null."""
    return pa.schema([pa.field(name, _TYPES.get(name, pa.string()), nullable=False) for name in names])


def table(rows: Sequence[Mapping[str, Any]], metadata: Mapping[bytes, bytes]) -> pa.Table:
    """Make a table of at least one row, as `Row.as_dict` gives them; all have the same columns."""
    return pa.Table.from_pylist(list(rows), schema=schema(tuple(rows[0])).with_metadata(dict(metadata)))
