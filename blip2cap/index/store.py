"""The files of an index that is locked: segments are added, lists written anew, index.json last; damage is mended."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2cap.errors import OutputRefusedError
from blip2cap.index import build
from blip2cap.index.catalog import NAME, Catalog, SegmentEntry, damaged
from blip2cap.index.checksums import checksum_of
from blip2cap.index.codes import codes_shape
from blip2cap.index.folder import MERGING, check_unlisted, next_segment, sweep
from blip2cap.index.images import read_list, write_table
from blip2cap.index.known import Known, keys_of
from blip2cap.index.merge import choose, merge_rows, merged_list
from blip2cap.index.rows import shape_of
from blip2cap.index.segment import EMBEDDINGS, VECTORS, map_array, map_vectors
from blip2cap.jobs.job import Listener
from blip2cap.outputs.files import Files, sync_folder, write_whole
from blip2cap.outputs.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES = "images-1.arrow"
"""The first list of the images of a segment."""
_NEW_CENTRE = 4
"""The centre is computed anew when the index has this many times as many images as when that was done."""


class Store:
    """An index on disk, which nobody else changes meanwhile."""

    def __init__(self, folder: Path, listener: Listener, files: Files, *, check: bool) -> None:
        """Read index.json, make again what is missing, and remove what killed updates have left.

        `check` reads all files, and makes those again that have another checksum.

        Raises OutputRefusedError if the index is damaged or has complete segments that index.json does not list.
        """
        self.folder, self.listener, self.files = folder, listener, files
        self.catalog: Catalog | None = Catalog.read(folder) if os.path.lexists(folder / NAME) else None
        """Content of index.json; None before the first one."""
        check_unlisted(folder, self.catalog)
        if self.catalog is not None:
            self._mend(check)
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
        entry, centre = self._write_segment(inner, table, old)
        num_changed = sum(known.remove(key) for key in keys_of(table.filter(pc.invert(table["removed"]))))
        num_centre_images = old.num_centre_images or entry.num_vectors
        new = replace(old, centre=centre, num_centre_images=num_centre_images, segments=(*old.segments, entry))
        self.write_lists(known, new)
        known.add(table)
        self._centre_anew()
        return num_changed

    def merge(self, known: Known, stopped: Callable[[], bool]) -> None:
        """Merge segments while there are too many small ones, or more of one was removed than is left.

        `known` has the images of all segments, and is not brought up to date. An error of the disk is told: the index
        is complete without it. Raises OutputRefusedError for a damaged file.
        """
        kept, removed = known.counts()
        while not stopped() and (chosen := choose(kept, removed)) is not None:
            names = [entry.name for entry in self._entries[chosen]]
            self.listener.say(f"{self.folder}: writing the images of {', '.join(names)} into one segment ...")
            try:
                self._merge(chosen)
            except OSError as error:
                reason = error.strerror or error
                self.listener.say(f"{self.folder}: cannot be merged: {reason}. It is complete; searches take longer.")
                return
            total = sum(kept[chosen])
            kept[chosen], removed[chosen] = ([total], [0]) if total else ([], [])

    def _merge(self, chosen: slice) -> None:
        """Write a segment with the images of some that follow each other, and replace them by it."""
        catalog, old = self.catalog, self._entries[chosen]
        assert catalog is not None
        folders = [self.folder / entry.name for entry in old]
        tables = [read_list(folder / entry.images) for folder, entry in zip(folders, old, strict=True)]
        table = merged_list(tables)
        new: tuple[SegmentEntry, ...] = ()
        if len(table):
            inner = next_segment(self.folder, catalog)
            os.mkdir(inner)
            write_whole(self.files, inner / MERGING, b"")
            sync_folder(self.files, self.folder)
            merge_rows(folders, tables, inner / EMBEDDINGS, self.files)
            new = (self._write_segment(inner, table, catalog)[0],)
        segments = (*catalog.segments[: chosen.start], *new, *catalog.segments[chosen.stop :])
        merged = (*catalog.merged, *(entry.name for entry in old))
        self.write(replace(catalog, segments=segments, merged=merged))

    @property
    def _entries(self) -> tuple[SegmentEntry, ...]:
        return self.catalog.segments if self.catalog else ()

    def _write_segment(self, inner: Path, table: pa.Table, catalog: Catalog) -> tuple[SegmentEntry, list[float]]:
        """Write vectors, codes and list of a segment whose rows are written; return its entry, and the centre.

        The centre is that of the index, or of this segment if it is the first.
        """
        num_vectors = int(np.count_nonzero(table["vector"].to_numpy() >= 0))
        sums = {VECTORS: build.write_vectors(inner, num_vectors, catalog.shape, self.files)}
        vectors = map_vectors(inner, num_vectors, catalog.shape)
        centre = list(catalog.centre) or build.mean_row(vectors)
        sums[catalog.codes] = build.write_codes(inner / catalog.codes, vectors, centre or 0.0, self.files)
        sums[IMAGES] = write_table(table, inner / IMAGES, self.files)
        return SegmentEntry(name=inner.name, num_vectors=num_vectors, images=IMAGES, checksums=sums), centre

    def write_lists(self, known: Known, catalog: Catalog) -> None:
        """Write the lists that have changed under new names, then index.json, then remove the old ones."""
        entries = list(catalog.segments)
        for segment in sorted(known.changed):
            entry = entries[segment]
            name = _next_name(entry.images)
            checksum = write_table(known.table(segment), self.folder / entry.name / name, self.files)
            entries[segment] = replace(entry, images=name, checksums=_changed(entry, entry.images, name, checksum))
        known.changed.clear()
        self.write(replace(catalog, segments=tuple(entries)))

    def write(self, catalog: Catalog) -> None:
        """Replace index.json, and remove what it does not name any more. Raises OSError."""
        merged = tuple(name for name in catalog.merged if os.path.lexists(self.folder / name))
        catalog = replace(catalog, merged=merged)
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
        mapped = [self._vectors(catalog, entry) for entry in catalog.segments]
        means = [(build.mean_row(vectors), len(vectors)) for vectors in mapped if len(vectors)]
        centre = np.average([mean for mean, _ in means], axis=0, weights=[number for _, number in means])
        new = replace(catalog, centre=centre.tolist(), num_centre_images=num_images, codes=_next_name(catalog.codes))
        entries = []
        for entry, vectors in zip(catalog.segments, mapped, strict=True):
            checksum = build.write_codes(self.folder / entry.name / new.codes, vectors, new.centre, self.files)
            entries.append(replace(entry, checksums=_changed(entry, catalog.codes, new.codes, checksum)))
        self.write(replace(new, segments=tuple(entries)))

    def _vectors(self, catalog: Catalog, entry: SegmentEntry) -> Any:
        return map_vectors(self.folder / entry.name, entry.num_vectors, catalog.shape)

    def _mend(self, check: bool) -> None:
        """Make damaged vectors and codes again; forget segments whose folders were removed.

        Raises OutputRefusedError for a damaged file that cannot be made again.
        """
        catalog = self.catalog
        assert catalog is not None
        here = [entry for entry in catalog.segments if (self.folder / entry.name).is_dir()]
        for entry in here:  # before anything is made again or swept: an older index.json names older lists
            read_list(path := self.folder / entry.name / entry.images)
            if check and self._differs(entry, entry.images):
                raise damaged(path, "its checksum differs")
        num_removed = len(catalog.segments) - len(here)
        if num_removed:
            self.listener.say(f"{self.folder}: {num_removed} segments were removed from it")
        mended = tuple(self._mended(catalog, entry, check) for entry in here)
        if mended != catalog.segments:
            self.write(replace(catalog, segments=mended))

    def _mended(self, catalog: Catalog, entry: SegmentEntry, check: bool) -> SegmentEntry:
        """Make vectors and codes of a segment again that are missing, truncated or, with `check`, other than written.

        Codes are made again with the vectors, as they may be those of damaged ones.
        """
        inner, shape, sums = self.folder / entry.name, catalog.shape, dict(entry.checksums)
        if check:
            for _ in build.read_rows(inner / EMBEDDINGS):
                pass  # every page is compared with its checksum
        try:
            self._vectors(catalog, entry)
            bad = check and self._differs(entry, VECTORS)
        except (OutputRefusedError, FileNotFoundError):
            bad = True
        if bad:
            sums[VECTORS] = build.write_vectors(inner, entry.num_vectors, shape, self.files)
            self.listener.say(f"{inner / VECTORS}: rebuilt from {EMBEDDINGS}")
        try:
            map_array(inner / catalog.codes, "<u8", codes_shape(entry.num_vectors, *shape))
            bad = bad or (check and self._differs(entry, catalog.codes))
        except (OutputRefusedError, FileNotFoundError):
            bad = True
        if bad:
            vectors = self._vectors(catalog, entry)
            sums[catalog.codes] = build.write_codes(inner / catalog.codes, vectors, catalog.centre, self.files)
            self.listener.say(f"{inner / catalog.codes}: rebuilt from {VECTORS}")
        return replace(entry, checksums=sums)

    def _differs(self, entry: SegmentEntry, name: str) -> bool:
        """Return True if a file has another checksum than when it was written. Vectors of no image have no file."""
        if name != entry.images and not entry.num_vectors:
            return False
        return checksum_of(self.folder / entry.name / name, self.files) != entry.checksums.get(name)


def _changed(entry: SegmentEntry, old: str, new: str, checksum: int) -> dict[str, int]:
    """Return the checksums of a segment of which the file `new` replaces `old`."""
    return {name: value for name, value in entry.checksums.items() if name != old} | {new: checksum}


def _next_name(name: str) -> str:
    """Return the next name of a file that is written anew: images-2.arrow after images-1.arrow."""
    stem, number = Path(name).stem.rsplit("-", 1)
    return f"{stem}-{int(number) + 1}{Path(name).suffix}"
