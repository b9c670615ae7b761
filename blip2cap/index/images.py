"""The list of the images of a segment: names, paths, and what tells whether a file has changed. An Arrow file."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2cap.index.catalog import damaged
from blip2cap.index.checksums import replacing_summed
from blip2cap.outputs.files import Files

if TYPE_CHECKING:
    import pyarrow as pa

DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """One image of an index."""

    file_name: str
    file_name_b64: str
    path: bytes
    """Path of the file or of its archive, or a URL, as bytes of the operating system."""
    num_bytes: int
    """Size of that file; -1 if unknown, as of a URL."""
    mtime_ns: int
    """Time of its last change; 0 if unknown."""
    digest: bytes = b""
    """BLAKE2b of the bytes of the image, 16 bytes; b"" if unknown."""
    error: str = ""
    """One of `records.FAILURES`; "" if it has an embedding."""
    vector: int = -1
    """Position of its embedding in vectors.npy; -1 if it has failed. These count up in the order of the list."""
    removed: bool = False
    """True if the file is gone, or a later segment has it."""

    @property
    def key(self) -> tuple[str, str]:
        """The two columns of its name, which are unique in an index."""
        return self.file_name, self.file_name_b64

    @property
    def signature(self) -> tuple[int, int]:
        """Size and time: if these are the same, the file is taken as unchanged."""
        return self.num_bytes, self.mtime_ns


def schema() -> pa.Schema:
    """Return the columns of the file."""
    import pyarrow as pa

    types = (
        *(("file_name", pa.string()), ("file_name_b64", pa.string()), ("path", pa.binary())),
        *(("num_bytes", pa.int64()), ("mtime_ns", pa.int64()), ("digest", pa.binary())),
        *(("error", pa.string()), ("vector", pa.int32()), ("removed", pa.bool_())),
    )
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types])


def make_table(images: Sequence[Image]) -> pa.Table:
    """Make the columns of images."""
    import pyarrow as pa

    arrays = [pa.array([getattr(each, field.name) for each in images], field.type) for field in schema()]
    return pa.table(arrays, schema=schema())


def write_table(table: pa.Table, path: Path, files: Files) -> int:
    """Write a list of images atomically; return its checksum. Raises OSError."""
    import pyarrow as pa

    with replacing_summed(files, path) as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return stream.checksum


def read_table(path: Path) -> pa.Table:
    """Map a list of images into memory. Raises FileNotFoundError, or OutputRefusedError if it is damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
            table = file.read_all()
        table.validate(full=True)
        if table.schema != schema():
            raise ValueError(f"columns {', '.join(table.schema.names)}")
    except FileNotFoundError as error:  # that of pyarrow does not name the file
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(path, str(error).splitlines()[0]) from error
    return table


def read_list(path: Path) -> pa.Table:
    """Map a list of images of an index that is locked. Raises OutputRefusedError if it is missing or damaged."""
    try:
        return read_table(path)
    except FileNotFoundError as error:
        raise damaged(path, "it is missing") from error


def positions(table: pa.Table, num_vectors: int, path: Path) -> tuple[Any, Any]:
    """Return the place in the list of each vector (int64), and which vectors belong to no image any more (bool).

    Raises OutputRefusedError if the list does not fit the number of vectors.
    """
    vector = _numbers(table["vector"])
    places = np.flatnonzero(vector >= 0)
    if len(places) != num_vectors or not np.array_equal(vector[places], np.arange(num_vectors)):
        raise damaged(path, f"expected {num_vectors} images with an embedding, found {len(places)}")
    return places, _truths(table["removed"])[places]


# Not by to_numpy(): it imports pandas, where that is installed, for half a second.
def _numbers(column: pa.ChunkedArray) -> Any:
    """Return a column of int32 without nulls as an array."""
    chunks = [
        np.frombuffer(each.buffers()[1], "<i4", len(each), 4 * each.offset) for each in column.chunks if len(each)
    ]
    return np.concatenate([np.empty(0, "<i4"), *chunks])


def _truths(column: pa.ChunkedArray) -> Any:
    """Return a column of bool without nulls as an array."""
    chunks = []
    for each in filter(len, column.chunks):
        bits = np.unpackbits(np.frombuffer(each.buffers()[1], np.uint8), bitorder="little")
        chunks.append(bits[each.offset : each.offset + len(each)].astype(bool))
    return np.concatenate([np.empty(0, bool), *chunks])
