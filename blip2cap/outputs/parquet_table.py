"""A Parquet file of rows: its manifest is in its metadata, its pages have checksums, and it is written atomically."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2cap.errors import OutputRefusedError
from blip2cap.outputs.existing_rows import Journal, Keyed
from blip2cap.outputs.files import Files, replacing, write_all
from blip2cap.outputs.manifest import FINISHED, Manifest
from blip2cap.rows import Schema, row_key

if TYPE_CHECKING:
    import pyarrow as pa

_MANIFEST = b"blip2cap"
"""Key of the manifest in the metadata of the schema."""
_ROW_GROUP = 50_000
"""Largest number of rows in memory at once, as columns; fewer if they hold large vectors."""
BATCH = 5_000
"""Largest number of rows in memory at once as Python objects, which take several times as much."""
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Content of a Parquet file before a run adds to it."""

    manifest: Manifest
    replaced: set[str] = field(default_factory=set)
    """Keys of its rows that the journal has too."""


def read_table(path: Path, journal: Journal, *, retry_failed: bool = False) -> Table | None:
    """Read a whole Parquet file and add its rows to the counts of `journal`; return None if there is no file.

    Raises OutputRefusedError if it is damaged or not made by blip2cap.
    """
    import pyarrow as pa

    try:
        with open_table(path) as parquet:
            schema = parquet.schema_arrow
            manifest = Manifest.from_json((schema.metadata or {})[_MANIFEST])
            if not schema.remove_metadata().equals(manifest.schema.arrow()):
                raise TypeError("its columns differ from those in its manifest")
            table = Table(manifest=manifest)
            for batch in parquet.iter_batches(batch_size=manifest.schema.num_rows(BATCH)):
                rows: Iterable[Keyed] = keys_in(batch, manifest.label)
                if journal.num_bytes:
                    rows = [*rows]
                    again = {key for key, _, _ in rows if key in journal.finished or key in journal.to_retry}
                    table.replaced.update(again)
                    rows = (row for row in rows if row[0] not in again)
                journal.note(rows, retry_failed=retry_failed)
            return table
    except FileNotFoundError:
        return None
    except KeyError as error:
        raise OutputRefusedError(
            f"{path} is not an output of blip2cap: it has no manifest. Use another --out."
        ) from error
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise OutputRefusedError(
            f"{path} is damaged ({error}). Restore it from a copy, or use another --out."
        ) from error


def written_as(schema: Schema) -> Mapping[str, Any]:
    """Return settings of pyarrow's writers: numbers of vectors do not repeat, so a dictionary would cost time."""
    others = [name for name in schema.names if name not in schema.vectors]
    return {"compression": "zstd", "use_dictionary": others if schema.vectors else True}


def embedded_manifest(path: Path) -> Manifest | None:
    """Read the manifest in a Parquet file, or the settings in a part; None if it has none, or if there is no such file.

    Raises OutputRefusedError for a manifest that is damaged, or of a later release.
    """
    import pyarrow as pa

    if not path.is_file():  # reading a FIFO would wait for ever
        return None
    try:
        with open_table(path) as parquet:
            content = (parquet.schema_arrow.metadata or {}).get(_MANIFEST)
    except (OSError, pa.ArrowException):
        return None
    try:
        if content is None or "plan" not in json.loads(content):
            return None if content is None else Manifest.from_json(content)
        return Manifest(settings=json.loads(content)["settings"])
    except (ValueError, TypeError, KeyError) as error:
        raise OutputRefusedError(f"{path} is damaged: its manifest cannot be read ({error}).") from error


def write_table(path: Path, manifest: Manifest, batches: Iterable[pa.RecordBatch], files: Files) -> None:
    """Write rows to a Parquet file, which replaces `path` atomically; the manifest is that of a finished run.

    Raises OSError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {_MANIFEST: replace(manifest, state=FINISHED).as_json()}
    schema = manifest.schema.arrow().with_metadata(metadata)
    with replacing(files, path) as file:
        feed = _Feed(files, file)
        most = manifest.schema.num_rows(_ROW_GROUP)
        with pq.ParquetWriter(feed, schema, **written_as(manifest.schema), write_page_checksum=True) as writer:
            for group in _in_groups(batches, most):
                writer.write_table(pa.Table.from_batches(group, schema), row_group_size=most)
        feed.write_rest()


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[Any]:
    """Open a Parquet file; every page that is read is compared with its checksum."""
    import pyarrow.parquet as pq

    with open(path, "rb") as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        yield parquet


def keys_in(batch: pa.RecordBatch, label: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, status and error of each row."""
    names = ["file_name", "file_name_b64", "status", "error", *([label] if label else [])]
    for name, raw, status, error, *labels in zip(*(batch[name].to_pylist() for name in names), strict=True):
        yield row_key(name, raw, labels[0] if labels else None), status, error


def _in_groups(batches: Iterable[pa.RecordBatch], most: int) -> Iterator[list[pa.RecordBatch]]:
    """Group batches into row groups of at most `most` rows."""
    group: list[pa.RecordBatch] = []
    for batch in batches:
        if group and sum(map(len, group)) + len(batch) > most:
            yield group
            group = []
        group.append(batch)
    yield group


class _Feed(io.RawIOBase):
    """An open file for pyarrow, written in large pieces.

    After a failed write it ignores all data: pyarrow still writes its footer, but the file will be discarded.
    """

    def __init__(self, files: Files, file: int) -> None:
        self._files, self._file = files, file
        self._waiting = bytearray()
        self._position = 0
        self._failed = False

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def write(self, data: Any) -> int:
        """Take all data; write it once there is enough."""
        num_bytes = memoryview(data).nbytes
        self._waiting += data
        self._position += num_bytes
        if len(self._waiting) > _PIECE:
            self.write_rest()
        return num_bytes

    def write_rest(self) -> None:
        """Write all data taken so far."""
        data, self._waiting = self._waiting, bytearray()
        if not self._failed:
            self._failed = True
            write_all(self._files, self._file, memoryview(data))
            self._failed = False
