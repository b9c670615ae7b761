"""One segment of an index, mapped into memory: the vectors of its images, their codes and their names."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2cap import urls
from blip2cap.index.catalog import SegmentEntry, damaged
from blip2cap.index.codes import codes_shape
from blip2cap.index.hits import Hit
from blip2cap.index.images import positions, read_table

if TYPE_CHECKING:
    import pyarrow as pa

EMBEDDINGS, VECTORS = "embeddings.parquet", "vectors.npy"
"""Files of a segment: the embeddings as the run wrote them, and the same as an array."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A segment that was opened for searching. Nothing in it is changed."""

    folder: Path
    vectors: Any
    """float16 [num_images, rows, length]."""
    codes: Any
    """uint64, see codes.py."""
    table: pa.Table
    """List of its images, see images.py."""
    places: Any
    """int64 [num_images]: place in the list of each vector."""
    live: Any
    """bool [num_images]: False for images that were removed."""

    @classmethod
    def open(cls, index: Path, entry: SegmentEntry, shape: tuple[int, int], codes_name: str) -> Segment:
        """Map the files of a segment; content is read when it is needed.

        Raises FileNotFoundError if a file is missing, which may have been replaced since `entry` was read, and
        OutputRefusedError if one is damaged or truncated.
        """
        folder = index / entry.name
        table = read_table(folder / entry.images)
        places, removed = positions(table, entry.num_vectors, folder / entry.images)
        vectors = map_vectors(folder, entry.num_vectors, shape)
        codes = map_array(folder / codes_name, "<u8", codes_shape(entry.num_vectors, *shape))
        return cls(folder=folder, vectors=vectors, codes=codes, table=table, places=places, live=~removed)

    def hit(self, position: int, score: float, root: str) -> Hit:
        """Return the image of a vector with its score; its path is relative to `root` in the list, or absolute."""
        row = self.table.slice(int(self.places[position]), 1).select(["file_name", "path"]).to_pylist()[0]
        path = os.fsdecode(row["path"])
        path = path if urls.scheme(path) else os.path.join(root, path)
        return Hit(file_name=row["file_name"], path=path, score=float(score))

    def names(self) -> list[str]:
        """Return the file names of all vectors, in their order; of removed images too."""
        return self._column("file_name")

    def _column(self, name: str) -> list[str]:
        """Return a column of the list, in the order of the vectors."""
        # Not by take(): it imports pandas, where that is installed, for half a second.
        column = self.table[name].to_pylist()
        return [column[place] for place in self.places.tolist()]

    def paths_in_system(self) -> list[str]:
        """Return the names of all vectors as the system has them, undecodable bytes as surrogate escapes."""
        coded = self._column("file_name_b64")
        return [
            os.fsdecode(base64.b64decode(b64)) if b64 else name for name, b64 in zip(self.names(), coded, strict=True)
        ]


def map_vectors(folder: Path, num_images: int, shape: tuple[int, int]) -> Any:
    """Map the vectors of a segment: float16 [num_images, rows, length]. Raises as `map_array` does."""
    return map_array(folder / VECTORS, "<f2", (num_images, *shape))


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> Any:
    """Map a .npy file into memory. Raises FileNotFoundError, or OutputRefusedError for another content."""
    if 0 in shape:
        return np.empty(shape, dtype)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise damaged(path, str(error)) from error
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise damaged(path, f"expected {dtype} {list(shape)}, found {array.dtype.str} {list(array.shape)}")
    return np.asarray(array)
