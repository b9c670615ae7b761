"""The files of an index that is locked: segments are added, lists written anew, index.json last; damage is mended."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2cap.errors import OutputRefusedError
from blip2cap.index import build
from blip2cap.index.catalog import NAME, Catalog, SegmentEntry, damaged
from blip2cap.index.codes import codes_shape
from blip2cap.index.folder import check_unlisted, sweep
from blip2cap.index.images import read_list, write_table
from blip2cap.index.known import Known, keys_of
from blip2cap.index.rows import shape_of
from blip2cap.index.segment import EMBEDDINGS, VECTORS, map_array
from blip2cap.jobs.job import Listener
from blip2cap.outputs.files import Files
from blip2cap.outputs.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

_NEW_CENTRE = 4
"""The centre is computed anew when the index has this many times as many images as when that was done."""


class Store:
    """An index on disk, which nobody else changes meanwhile."""

    def __init__(self, folder: Path, listener: Listener, files: Files) -> None:
        """Read index.json, make again what is missing, and remove what killed updates have left.

        Raises OutputRefusedError if the index is damaged or has complete segments that index.json does not list.
        """
        self.folder, self.listener, self.files = folder, listener, files
        self.catalog: Catalog | None = Catalog.read(folder) if os.path.lexists(folder / NAME) else None
        """Content of index.json; None before the first one."""
        check_unlisted(folder, self.catalog)
        if self.catalog is not None:
            self._mend()
            sweep(folder, self.catalog, files)

    def add(self, inner: Path, table: pa.Table, made_with: Mapping[str, Any], known: Known) -> int:
        """Make a segment of the rows in a folder, whose images `table` lists, and add it to index.json.

        Images of that name in older segments are removed by this, and other changes in `known` are written; then the
        new ones are added to `known`. Return the number of images that older segments had. Raises OutputRefusedError
        if the rows do not fit the index.
        """
        import pyarrow.compute as pc

        shape = shape_of(inner / EMBEDDINGS)
        old = self.catalog or Catalog(settings=made_with, shape=shape)
        if shape != old.shape:
            raise damaged(inner / EMBEDDINGS, f"embeddings of shape {list(shape)}, the index has {list(old.shape)}")
        Manifest(settings=old.settings).check({**made_with, "input_root": old.settings.get("input_root")}, inner.name)
        num_vectors = int(np.count_nonzero(table["vector"].to_numpy() >= 0))
        vectors = build.write_vectors(inner, num_vectors, shape, self.files)
        centre = list(old.centre) or build.mean_row(vectors)
        if centre:
            build.write_codes(inner / old.codes, vectors, centre, self.files)
        write_table(table, inner / "images-1.arrow", self.files)
        num_changed = sum(known.remove(key) for key in keys_of(table.filter(pc.invert(table["removed"]))))
        entry = SegmentEntry(name=inner.name, num_vectors=num_vectors, images="images-1.arrow")
        num_centre_images = old.num_centre_images or num_vectors
        new = replace(old, centre=centre, num_centre_images=num_centre_images, segments=(*old.segments, entry))
        self.write_lists(known, new)
        known.add(table)
        self._centre_anew()
        return num_changed

    def write_lists(self, known: Known, catalog: Catalog) -> None:
        """Write the lists that have changed under new names, then index.json, then remove the old ones."""
        entries = list(catalog.segments)
        for segment in sorted(known.changed):
            entry = entries[segment]
            entries[segment] = replace(entry, images=_next_name(entry.images))
            write_table(known.table(segment), self.folder / entry.name / entries[segment].images, self.files)
        known.changed.clear()
        self.write(replace(catalog, segments=tuple(entries)))

    def write(self, catalog: Catalog) -> None:
        """Replace index.json, and remove what it does not name any more. Raises OSError."""
        catalog.write(self.folder, self.files)
        self.catalog = catalog
        sweep(self.folder, catalog, self.files)

    def _centre_anew(self) -> None:
        """Compute the centre and all codes again once the index has grown much: first images may be unlike others."""
        catalog = self.catalog
        assert catalog is not None
        num_images = sum(entry.num_vectors for entry in catalog.segments)
        if num_images < _NEW_CENTRE * max(catalog.num_centre_images, 1) or len(catalog.segments) == 1:
            return
        mapped = {entry.name: self._vectors(catalog, entry) for entry in catalog.segments}
        means = [(build.mean_row(vectors), len(vectors)) for vectors in mapped.values() if len(vectors)]
        centre = np.average([mean for mean, _ in means], axis=0, weights=[number for _, number in means])
        new = replace(catalog, centre=centre.tolist(), num_centre_images=num_images, codes=_next_name(catalog.codes))
        for name, vectors in mapped.items():
            build.write_codes(self.folder / name / new.codes, vectors, new.centre, self.files)
        self.write(new)

    def _vectors(self, catalog: Catalog, entry: SegmentEntry) -> Any:
        return map_array(self.folder / entry.name / VECTORS, "<f2", (entry.num_vectors, *catalog.shape))

    def _mend(self) -> None:
        """Make vectors and codes again that are missing or truncated; forget segments whose folders were removed."""
        catalog = self.catalog
        assert catalog is not None
        here = tuple(entry for entry in catalog.segments if (self.folder / entry.name).is_dir())
        for entry in here:  # before anything is made again or swept: an older index.json names older lists
            read_list(self.folder / entry.name / entry.images)
        for entry in here:
            inner, shape = self.folder / entry.name, catalog.shape
            try:
                vectors = self._vectors(catalog, entry)
            except (OutputRefusedError, FileNotFoundError):
                vectors = build.write_vectors(inner, entry.num_vectors, shape, self.files)
                self.listener.say(f"{inner / VECTORS}: made again from {EMBEDDINGS}")
            try:
                map_array(inner / catalog.codes, "<u8", codes_shape(entry.num_vectors, *shape))
            except (OutputRefusedError, FileNotFoundError):
                build.write_codes(inner / catalog.codes, vectors, catalog.centre, self.files)
                self.listener.say(f"{inner / catalog.codes}: made again from {VECTORS}")
        if here != catalog.segments:
            self.listener.say(f"{self.folder}: {len(catalog.segments) - len(here)} segments were removed from it")
            self.write(replace(catalog, segments=here))


def _next_name(name: str) -> str:
    """Return the next name of a file that is written anew: images-2.arrow after images-1.arrow."""
    stem, number = Path(name).stem.rsplit("-", 1)
    return f"{stem}-{int(number) + 1}{Path(name).suffix}"
