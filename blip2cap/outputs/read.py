"""The reader of the rows of any kind of output; `open.open_rows` opens one."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from blip2cap.column_types import python_values
from blip2cap.errors import InputError, OutputRefusedError
from blip2cap.key_set import KeySet
from blip2cap.outputs.manifest import Manifest
from blip2cap.rows import Row, Schema
from blip2cap.tasks.registry import recognise

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH, _BATCH_BYTES = 4096, 64_000_000
"""Largest number of rows in memory at once; fewer if they hold large vectors."""
_BLOCK = 1 << 20
_RESTORE = (
    "restore it from a copy. A part can be rebuilt: move it to another folder, and run the command that made it again."
)


class Results:
    """The rows of one output, in their order; may be iterated more than once.

    They are in Parquet files (`tables`), in lines of JSON (`journal`, or a `stream` that can be rewound), or in both:
    of a row that is in both, the journal's counts. Columns that no task has are ignored. `manifest` is asked for the
    columns; where there is none, their names tell them.

    Raises OutputRefusedError while iterating, at a damaged row, InputError at one of `embed --texts`.
    """

    def __init__(
        self,
        given: str,
        *,
        tables: Sequence[str] = (),
        journal: str = "",
        stream: BinaryIO | None = None,
        manifest: Callable[[], Manifest | None] = lambda: None,
        ignored: Sequence[str] = (),
    ) -> None:
        self.given = given
        """Name of the output, or `-`."""
        self.ignored = ignored
        """Names of Parquet files in a folder of parts that are not among its parts."""
        self.torn_bytes = 0
        """Length of a torn last line, known once all rows have been read."""
        self._tables, self._journal, self._stream, self._manifest = tables, journal, stream, manifest
        if stream is not None:
            weakref.finalize(self, stream.close)

    def __iter__(self) -> Iterator[Row]:
        # At its end, a run writes the Parquet file, then empties the journal. So the lines are read first, so that none
        # is missed, and must still exist at the end.
        parser = _Parser(self._manifest)
        replaced, num_lines = self._journal_keys() if self._tables else (KeySet(), None)
        for columns, where in self._table_rows():
            row = parser.row(columns, where)
            if not replaced or row.key not in replaced:
                yield row
        num_read = 0
        for columns, where in itertools.islice(self._lines(), num_lines):
            num_read += 1
            yield parser.row(columns, where)
        if num_lines is not None and num_read < num_lines:
            raise OutputRefusedError(
                f"{self.given} was finished by its run while it was read. Run the same command again."
            )

    def count(self) -> int:
        """Count the rows, if possible without parsing them."""
        if self._tables and self._has_lines:
            return sum(1 for _ in self)
        if self._tables:
            num_rows = 0
            for path in self._tables:
                with _parquet(path) as file:
                    num_rows += file.metadata.num_rows
            return num_rows
        with self._open_lines() as lines:
            return sum(block.count(b"\n") for block in iter(lambda: lines.read(_BLOCK), b""))

    @property
    def _has_lines(self) -> bool:
        """True if there is a journal; that of a Parquet file exists during a run, and after a run that was stopped."""
        return self._stream is not None or not self._tables or os.path.isfile(self._journal)

    def _journal_keys(self) -> tuple[KeySet, int]:
        """Return keys and number of the rows in the journal, which replace those in the Parquet file."""
        parser, keys, num_lines = _Parser(self._manifest), KeySet(), 0
        for columns, where in self._lines():
            keys.add(parser.row(columns, where).key)
            num_lines += 1
        return keys, num_lines

    def _lines(self) -> Iterator[tuple[Any, str]]:
        """Yield the parsed lines of the journal, each with its place for messages."""
        if not self._has_lines:
            return
        with self._open_lines() as lines:
            for number, line in enumerate(lines, start=1):  # a file of bytes: only b"\n" ends a line
                if not line.endswith(b"\n"):
                    self.torn_bytes = len(line)
                    return
                where = f"{'standard input' if self.given == '-' else self._journal or self.given}:{number}"
                try:
                    columns = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise _damaged(where, "not JSON") from error
                yield columns, where

    def _table_rows(self) -> Iterator[tuple[Any, str]]:
        """Yield the rows of the Parquet files, each with its place; a file may not exist yet if there is a journal."""
        for path in self._tables:
            if self._has_lines and not os.path.exists(path):
                continue
            number = 0
            with _parquet(path) as file:
                for batch in file.iter_batches(batch_size=_batch_size(file.schema_arrow)):
                    names = batch.schema.names
                    for values in zip(*map(python_values, batch.columns), strict=True):
                        number += 1
                        yield dict(zip(names, values, strict=True)), f"{path}:{number}"

    @contextmanager
    def _open_lines(self) -> Iterator[BinaryIO]:
        if self._stream is not None:
            self._stream.seek(0)
            yield self._stream
        else:
            with readable(self._journal), open(self._journal, "rb") as file:
                yield file


class _Parser:
    """Makes rows of parsed columns; all must have the columns of the first."""

    def __init__(self, manifest: Callable[[], Manifest | None]) -> None:
        self._manifest = manifest
        self._names: tuple[str, ...] = ()
        self._schema: Schema | None = None
        self._recognised = False
        """True if the schema comes from the names of the columns, not from a manifest."""

    def row(self, columns: Any, where: str) -> Row:
        """Make a row of parsed columns. Raises OutputRefusedError, which names the place, if they are not a row."""
        try:
            if not isinstance(columns, dict):
                raise TypeError("not an object")
            return self._schema_for(columns, where).parse(columns)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(where, f"no column {error}" if isinstance(error, KeyError) else str(error)) from error

    def _schema_for(self, columns: dict[str, Any], where: str) -> Schema:
        columns = {name: value for name, value in columns.items() if value is not None}
        names = tuple(columns)
        if {*names} == {"text", "embedding"}:
            raise InputError(
                f"{where}: a text and its vector, as `embed --texts` writes them. Expected rows of images; read these "
                "with pandas, polars, DuckDB or pyarrow."
            )
        if self._schema is None:
            manifest = self._manifest()
            self._recognised = manifest is None or "command" not in manifest.settings
            self._schema = recognise(columns) if manifest is None or self._recognised else manifest.schema
            if self._schema is None:
                if "embedding" in columns:
                    raise ValueError("vectors in lines of JSON, without the manifest that tells their shape")
                raise KeyError("text")
        if names != self._names:
            other = recognise(columns)
            if other not in (None, self._schema) and (self._recognised or not set(self._schema.names) <= set(names)):
                raise _damaged(where, "its columns differ from those of the rows before")
            self._names = names
        return self._schema


def ignored_message(given: str, names: Sequence[str]) -> str:
    """Return the message about Parquet files in a folder of parts that are not among its parts."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{given}: ignored {', '.join(names[:3])}{more}, not among its parts"


def part_order(name: str) -> tuple[int, str]:
    """Return a sort key that orders parts by number, also with different numbers of digits."""
    return len(name), name


def image_name(row: Row) -> str:
    """Return the name of a row's image in the operating system, undecodable bytes as surrogate escapes."""
    return os.fsdecode(base64.b64decode(row.file_name_b64) if row.file_name_b64 else row.file_name.encode())


def _damaged(where: str, reason: str) -> OutputRefusedError:
    remedy = _RESTORE if ".parquet:" in where else "repair or delete that row."
    return OutputRefusedError(
        f"{where}: not a row of blip2cap ({reason}). Expected an output of blip2cap; if it was one, {remedy}"
    )


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn an OSError about a file into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Expected an output of blip2cap.") from error


def _batch_size(schema: pa.Schema) -> int:
    """Return how many rows of a Parquet file to hold in memory at once."""
    import pyarrow as pa

    num_bytes = 1
    for kind in schema.types:
        length = 1
        while pa.types.is_fixed_size_list(kind):
            length, kind = length * kind.list_size, kind.value_type
        num_bytes += 4 * length
    return max(1, min(_BATCH, _BATCH_BYTES // num_bytes))


@contextmanager
def _parquet(path: str) -> Iterator[Any]:
    """Open a Parquet file; errors of pyarrow become an OutputRefusedError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with readable(path):
        file = open(path, "rb")  # noqa: SIM115  closed below; pyarrow's own errors name no reason
    with file:
        try:
            # Without a buffer, whole column chunks are in memory.
            yield pq.ParquetFile(file, buffer_size=_BLOCK, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise OutputRefusedError(
                f"{path} is damaged: not a complete Parquet file ({str(error).splitlines()[0]}). To mend it, {_RESTORE}"
            ) from error


def spool(stdin: BinaryIO | None) -> BinaryIO:
    """Copy standard input to a temporary file, as an export reads its rows twice."""
    stream = stdin or (sys.stdin.buffer if sys.stdin is not None else None)
    if stream is None:
        raise InputError("-: standard input is closed.")
    spool = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the results
    shutil.copyfileobj(stream, spool)
    return spool
