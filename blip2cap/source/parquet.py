"""Parquet files with image bytes -> ImageRef, one per row.

Listing reads no rows: a name is the number of its row. The bytes are read when a decode thread needs a row, a few rows
of one column at a time: rows already done are not read, and no row group is in memory as a whole.

Covered: binary columns, and structs of `bytes` and `path` as in Hugging Face datasets.
Not covered: lists of images in one row; rows with only the path of an image.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from blip2cap.errors import ImageError, InputError
from blip2cap.records import ImageRef
from blip2cap.urls import shown

_BATCH_ROWS = 16
_NUM_WAITING = 64
"""Rows that are kept until they are needed: threads need them out of order, by at most the number of threads."""
_BUFFER = 1 << 20


class ParquetTable:
    """One file. The constructor raises InputError if it cannot be read, or has no column of images."""

    def __init__(self, path: str, column: str | None, open_remote: Callable[[], Any] | None = None) -> None:
        self.path = path
        self.open_remote = open_remote
        try:
            with self.open() as file:
                schema = file.schema_arrow
                metadata = file.metadata
                self.num_rows: int = metadata.num_rows
                sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        except Exception as error:  # pyarrow and remote back ends have their own exceptions
            raise InputError(f"{path}: cannot be read as a Parquet file: {shown(str(error))}") from error
        self.column = _choose(path, schema, column)
        self.group_starts = [0, *itertools.accumulate(sizes)]

    def open(self) -> Any:
        """Open the file; the caller closes it.

        It is buffered: otherwise the column of a whole row group would be read into memory at once.
        """
        from pyarrow.parquet import ParquetFile

        source = self.path if self.open_remote is None else self.open_remote()
        return ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False, memory_map=False)

    def refs(self, skipped: Counter[str], damaged: list[str]) -> Iterator[ImageRef]:
        """Yield every row without reading it; none is skipped."""
        rows = TableRows(self)
        for number in range(self.num_rows):
            yield ImageRef(path=self.path, name=f"{self.path}#{number}", load=functools.partial(rows.load, number))


class TableRows:
    """Reads rows for several threads, which need them roughly in order."""

    def __init__(self, table: ParquetTable) -> None:
        self.table = table
        self.lock = threading.Lock()
        self.file: Any = None
        self.batches: Iterator[Any] = iter(())
        self.next_row = table.num_rows
        """First row of the next batch."""
        self.waiting: dict[int, Any] = {}
        """Rows that were read and are not needed yet."""
        self.broken: dict[int, tuple[str, str]] = {}
        """Unreadable row groups -> code and message of the error."""

    def load(self, number: int) -> bytes:
        """Return the bytes of one row. Raises ImageError."""
        with self.lock:
            if number not in self.waiting:
                self._read_up_to(number)
            value = self.waiting.pop(number)
        return _bytes_of(value)

    def _read_up_to(self, number: int) -> None:
        """Read batches up to a row; start at its row group if that is further on, or if the row was read before."""
        group = self._group(number)
        if group in self.broken:
            raise ImageError(*self.broken[group])
        start = self.table.group_starts[group]
        try:
            if not self.next_row <= number or start > self.next_row + _NUM_WAITING:
                self._start_at(group)
            while self.next_row <= number:
                self._keep(next(self.batches))
        except Exception as error:  # pyarrow and remote back ends have their own exceptions
            at, self.next_row = self._group(min(self.next_row, number)), self.table.num_rows
            # pyarrow's own OSError, for damaged content, has no number of the system.
            code = "unreadable" if isinstance(error, OSError) and error.errno else "corrupt"
            detail = f"the Parquet file cannot be read here: {type(error).__name__}: {shown(str(error))}"
            self.broken[at] = code, detail
            if at == group:
                raise ImageError(code, detail) from error
            self._read_up_to(number)

    def _group(self, number: int) -> int:
        return bisect.bisect_right(self.table.group_starts, number) - 1

    def _start_at(self, group: int) -> None:
        if self.file is None:
            self.file = self.table.open()
        groups = range(group, len(self.table.group_starts) - 1)
        self.batches = self.file.iter_batches(_BATCH_ROWS, groups, [self.table.column], use_threads=False)
        self.next_row = self.table.group_starts[group]

    def _keep(self, batch: Any) -> None:
        for value in batch.column(0):
            self.waiting[self.next_row] = value
            self.next_row += 1
        while len(self.waiting) > _NUM_WAITING:
            del self.waiting[next(iter(self.waiting))]


def _choose(path: str, schema: Any, wanted: str | None) -> str:
    """Return the column of images: the one that is given, or the only one that can hold images."""
    fitting = [field.name for field in schema if _fits(field.type)]
    columns = ", ".join(f"{field.name} ({_type_name(field.type)})" for field in schema) or "none"
    if wanted is not None and wanted not in fitting:
        raise InputError(
            f"{path}: --image-column {wanted}: no such column of image bytes. Its columns: {columns}. "
            "Expected binary, or a struct with `bytes`."
        )
    if wanted is None and len(fitting) != 1:
        number = "more than one column" if fitting else "no column"
        raise InputError(
            f"{path}: {number} could hold images: {columns}. "
            + ("Choose with --image-column." if fitting else "Expected binary, or a struct with `bytes`.")
        )
    return wanted or fitting[0]


def _fits(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _type_name(kind: Any) -> str:
    name = str(kind)
    return name if len(name) <= 60 else f"{name[:60]}..."


def _bytes_of(value: Any) -> bytes:
    cell: Any = value.as_py()
    if isinstance(cell, dict):
        if cell["bytes"] is None and cell.get("path"):
            raise ImageError("vanished", f"the row has no bytes, only the path {cell['path']}")
        cell = cell["bytes"]
    if cell is None:
        raise ImageError("not_an_image", "the row is null")
    data: bytes = cell
    return data
