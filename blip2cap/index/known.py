"""The images that an index has, and which of its lists change in an update."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2cap.index.catalog import Catalog
from blip2cap.index.images import read_list
from blip2cap.rows import row_key

if TYPE_CHECKING:
    import pyarrow as pa


class Known:
    """The images of an index by their names: about 250 bytes each in memory.

    Numbers count the images of all lists, one list after the other. Changes are kept here until they are written.
    """

    def __init__(self, folder: Path, catalog: Catalog | None) -> None:
        self.tables: list[pa.Table] = []
        """List of images of each segment."""
        self.starts: list[int] = [0]
        """Number of the first image of each, and of all."""
        self.numbers: dict[str, int] = {}
        """Key of each image that was not removed -> its number."""
        self.num_bytes = self.mtime_ns = np.empty(0, np.int64)
        self.removed = self.failed = np.empty(0, bool)
        self.changed: set[int] = set()
        """Segments whose lists must be written."""
        for entry in catalog.segments if catalog else ():
            self.add(read_list(folder / entry.name / entry.images))

    def add(self, table: pa.Table) -> None:
        """Add the images of one more segment, the last."""
        removed = table["removed"].to_numpy()
        for number, key in enumerate(keys_of(table), start=self.starts[-1]):
            if not removed[number - self.starts[-1]]:
                self.numbers[key] = number
        self.tables.append(table)
        self.starts.append(self.starts[-1] + len(table))
        self.num_bytes = np.concatenate([self.num_bytes, table["num_bytes"].to_numpy()])
        self.mtime_ns = np.concatenate([self.mtime_ns, table["mtime_ns"].to_numpy()])
        self.removed = np.concatenate([self.removed, removed])
        self.failed = np.concatenate([self.failed, table["vector"].to_numpy() < 0])

    def signature(self, number: int) -> tuple[int, int]:
        """Return size and time of an image's file when it was embedded."""
        return int(self.num_bytes[number]), int(self.mtime_ns[number])

    def digest(self, number: int) -> bytes:
        """Return the hash of an image's bytes, b"" if unknown."""
        segment = self._segment(number)
        digest: bytes = self.tables[segment]["digest"][number - self.starts[segment]].as_py()
        return digest

    def touch(self, number: int, signature: tuple[int, int]) -> None:
        """Note a new size and time of a file whose content is the same."""
        self.num_bytes[number], self.mtime_ns[number] = signature
        self.changed.add(self._segment(number))

    def has_vector(self, key: str) -> bool:
        """Return True if there is an image of that name with an embedding."""
        number = self.numbers.get(key)
        return number is not None and not self.failed[number]

    def remove(self, key: str) -> bool:
        """Remove an image; return False if there is none of that name."""
        number = self.numbers.pop(key, None)
        if number is None:
            return False
        self.removed[number] = True
        self.changed.add(self._segment(number))
        return True

    def table(self, segment: int) -> pa.Table:
        """Return the list of a segment with its changes."""
        import pyarrow as pa

        table, here = self.tables[segment], slice(*self.starts[segment : segment + 2])
        for name, values in (("num_bytes", self.num_bytes), ("mtime_ns", self.mtime_ns), ("removed", self.removed)):
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(at), pa.array(values[here]))
        return table

    def counts(self) -> tuple[list[int], list[int]]:
        """Return the numbers of images of each segment that were not removed, and that were."""
        removed = [int(self.removed[slice(*self.starts[at : at + 2])].sum()) for at in range(len(self.tables))]
        return [len(table) - number for table, number in zip(self.tables, removed, strict=True)], removed

    def errors(self) -> list[str]:
        """Return the error of each failed image."""
        found = []
        for segment, table in enumerate(self.tables):
            here = slice(*self.starts[segment : segment + 2])
            failed = np.flatnonzero(self.failed[here] & ~self.removed[here])
            found += table["error"].take(failed).to_pylist()
        return found

    def _segment(self, number: int) -> int:
        return int(np.searchsorted(self.starts, number, side="right")) - 1


def keys_of(table: Any) -> list[str]:
    """Return the keys of the images of a list, as rows of a run have them."""
    names, coded = table["file_name"].to_pylist(), table["file_name_b64"].to_pylist()
    return [row_key(name, b64, None) for name, b64 in zip(names, coded, strict=True)]
