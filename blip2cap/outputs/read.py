"""The rows of an output of this tool, whatever its kind, one after the other.

Covered: a JSONL journal, also one that is being written; a .parquet file, its journal, or both; a folder of
part-*.parquet; JSONL on standard input. Columns that are no row's are passed over.
Not covered: buckets.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

from blip2cap.errors import InputError, OutputRefusedError
from blip2cap.key_set import KeySet
from blip2cap.outputs.files import behind
from blip2cap.outputs.parquet import journal_path
from blip2cap.records import Row

_BATCH = 4096
_BLOCK = 1 << 20
_TEXTS = ("file_name", "file_name_b64", "status", "error", "finish_reason")
_NUMBERS = ("num_tokens", "width", "height")
_SOMETIMES = tuple({field.name for field in fields(Row)} - {*_TEXTS, *_NUMBERS, "question", "text", "texts"})
"""Columns with a text that rows of some runs have."""


class Results:
    """The rows of one output, in their order; may be iterated more than once.

    Raises InputError if there is nothing to read, OutputRefusedError, while iterating, where it is damaged.
    """

    def __init__(self, given: str, stdin: BinaryIO | None = None) -> None:
        self.given = given
        """The path, or `-`."""
        self.torn_bytes = 0
        """Length of what a cut has left of a last line, known once all rows have been read."""
        self._spool: BinaryIO | None = None
        self._parts = [given]
        self._journal = given
        """Where rows are lines, "" if nowhere. That of a Parquet file is there while its run is, or was stopped."""
        if "://" in given:
            raise InputError(
                f"{given}: a URL. Expected a local output: copy it to a folder here and give that, or read its "
                "part-*.parquet with pyarrow or DuckDB. `blip2cap status` counts its rows where they are."
            )
        if given == "-":
            self._spool = _spool(stdin)
        elif os.path.exists(given) and not os.path.isfile(given) and not os.path.isdir(given):
            with _readable(given), open(given, "rb") as pipe:  # as of a shell's <(...)
                self._spool = _spool(pipe)
        elif os.path.isdir(given):
            self._parts = [str(path) for path in sorted(Path(given).glob("part-*.parquet"), key=_part)]
            self._journal = ""
            if not self._parts:
                raise InputError(f"{given}: a folder without part-*.parquet. Expected an output of caption or vqa.")
        else:
            if self._is_parquet:
                self._journal = str(journal_path(behind(Path(given))))
            there = given if os.path.exists(given) or not os.path.exists(self._journal) else self._journal
            with _readable(there), open(there, "rb"):
                pass
        if self._spool is not None:
            weakref.finalize(self, self._spool.close)

    @property
    def _is_parquet(self) -> bool:
        return self._spool is None and self._parts[0].lower().endswith(".parquet")

    def __iter__(self) -> Iterator[Row]:
        # A run that ends writes the Parquet file, then empties the journal: the lines are read first, so that none
        # is missed, and have to be there still at the end.
        replaced, num_lines = self._journal_keys() if self._is_parquet else (KeySet(), None)
        lines = itertools.islice(self._json_records(), num_lines)
        kind: tuple[bool, ...] | None = None
        for records, without in ((self._parquet_records(), replaced), (lines, KeySet())):
            num_read = 0
            for columns, where in records:
                num_read += 1
                row = _row_at(columns, where)
                here = tuple(columns.get(name) is None for name in ("question", "texts", *_SOMETIMES))
                if here != (kind := kind or here):
                    raise _damaged(where, "it has other columns than the rows before")
                if not without or row.key not in without:
                    yield row
        if num_lines is not None and num_read < num_lines:
            raise OutputRefusedError(
                f"{self.given} was finished by its run while it was read. Run the same command again."
            )

    def count(self) -> int:
        """Count the rows, if possible without looking into them."""
        if self._is_parquet:
            if self._has_journal:
                return sum(1 for _ in self)
            num_rows = 0
            for path in self._parts:
                with _parquet(path) as file:
                    num_rows += file.metadata.num_rows
            return num_rows
        with self._lines() as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b""))

    @property
    def _has_journal(self) -> bool:
        return not self._is_parquet or os.path.isfile(self._journal)

    def _journal_keys(self) -> tuple[KeySet, int]:
        """Return the keys of the rows that count instead of those in the Parquet file, and how many lines they are."""
        keys, num_lines = KeySet(), 0
        for columns, where in self._json_records():
            keys.add(_row_at(columns, where).key)
            num_lines += 1
        return keys, num_lines

    def _json_records(self) -> Iterator[tuple[Any, str]]:
        """Yield what may be the columns of a row, and where it stands."""
        if not self._has_journal:
            return
        with self._lines() as file:
            for number, line in enumerate(file, start=1):  # of bytes: ends lines at b"\n" only
                if not line.endswith(b"\n"):
                    self.torn_bytes = len(line)
                    return
                where = f"{'standard input' if self.given == '-' else self._journal}:{number}"
                try:
                    columns = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise _damaged(where, "no JSON") from error
                yield columns, where

    def _parquet_records(self) -> Iterator[tuple[Any, str]]:
        """Yield the same of Parquet files."""
        if not self._is_parquet or (self._has_journal and not os.path.exists(self.given)):
            return
        for path in self._parts:
            number = 0
            with _parquet(path) as file:
                for batch in file.iter_batches(batch_size=_BATCH):
                    for columns in batch.to_pylist():
                        number += 1
                        yield columns, f"{path}:{number}"

    @contextmanager
    def _lines(self) -> Iterator[BinaryIO]:
        if self._spool is not None:
            self._spool.seek(0)
            yield self._spool
        else:
            with _readable(self._journal), open(self._journal, "rb") as file:
                yield file


def _part(path: Path) -> tuple[int, str]:
    """Order parts by their numbers, also where one has more digits."""
    return len(path.name), path.name


def image_name(row: Row) -> str:
    """Return the name of a row's image as the operating system has it, undecodable bytes as surrogate escapes."""
    return os.fsdecode(base64.b64decode(row.file_name_b64) if row.file_name_b64 else row.file_name.encode())


def _row_at(columns: Any, where: str) -> Row:
    """Make a row of what stands at a place. Raises OutputRefusedError if it is none."""
    try:
        return _row(columns)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(where, _reason(error)) from error


def _row(columns: dict[str, Any]) -> Row:
    """Make a row of its columns. Raises ValueError, KeyError or TypeError if it is none."""
    if not isinstance(columns, dict):
        raise TypeError("no object")
    if not isinstance(columns.get("texts", []), list):
        raise TypeError("texts is no list")
    question = columns.get("question")
    text, texts = columns["text" if question is None else "answer"], columns.get("texts")
    sometimes = {name: columns[name] for name in _SOMETIMES if columns.get(name) is not None}
    row = Row(
        **{name: columns[name] for name in (*_TEXTS, *_NUMBERS)},
        **sometimes,
        question=question,
        text=text,
        texts=None if texts is None else tuple(texts),
    )
    strings = [text, *(columns[name] for name in _TEXTS), *(row.texts or ()), *sometimes.values()]
    "".join(
        strings if question is None else [*strings, question]
    ).encode()  # lone surrogates, which no output of ours has, would stop a writer halfway
    if any(type(columns[name]) is not int for name in _NUMBERS):
        raise TypeError("a number was expected")
    if row.status not in ("ok", "failed"):
        raise ValueError(f"status {row.status!r}")
    if row.file_name_b64:
        raw = base64.b64decode(row.file_name_b64, validate=True)
        if raw.decode("utf-8", "backslashreplace") != row.file_name:
            raise ValueError("file_name and file_name_b64 disagree")
    if "\0" in row.file_name or not row.file_name:
        raise ValueError("no file has that name")
    return row


def _reason(error: Exception) -> str:
    return f"no column {error}" if isinstance(error, KeyError) else str(error)


def _damaged(where: str, reason: str) -> OutputRefusedError:
    return OutputRefusedError(
        f"{where}: not a row of blip2cap ({reason}). Expected the output of caption or vqa; "
        "if it was one, repair or delete that row."
    )


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turn what the operating system says of a file that cannot be read into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Expected an output of caption or vqa.") from error


@contextmanager
def _parquet(path: str) -> Iterator[Any]:
    """Open a Parquet file; what pyarrow says of a damaged one becomes an OutputRefusedError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _readable(path):
        file = open(path, "rb")  # noqa: SIM115  closed below; pyarrow's own errors name no reason
    with file:
        try:
            yield pq.ParquetFile(file, buffer_size=_BLOCK)  # else whole column chunks are in memory
        except (pa.ArrowException, OSError) as error:
            raise OutputRefusedError(
                f"{path} is damaged: no whole Parquet file ({str(error).splitlines()[0]}). Make it again."
            ) from error


def _spool(stdin: BinaryIO | None) -> BinaryIO:
    """Copy standard input to the disk: an export reads its rows twice."""
    stream = stdin or (sys.stdin.buffer if sys.stdin is not None else None)
    if stream is None:
        raise InputError("-: standard input is closed.")
    spool = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the results
    shutil.copyfileobj(stream, spool)
    return spool
