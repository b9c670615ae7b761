"""Builds an index, and brings it up to date: only new and changed images are embedded.

An update that is killed leaves index.json as it was, and a segment that no index.json names. The next update makes a
segment of the rows in it, then does what is left.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2cap.decode.trace import trace_path
from blip2cap.errors import InputError, OutputError, OutputRefusedError
from blip2cap.index import build
from blip2cap.index.catalog import NAME, Catalog, SegmentEntry, damaged
from blip2cap.index.changes import UNREAD, Changes, find_changes
from blip2cap.index.codes import codes_shape
from blip2cap.index.embedding import ChosenImages, Embedder, RunEmbedder, finish_rows, read_digests
from blip2cap.index.folder import (
    DIGESTS,
    PLAN,
    TRACE,
    check_unlisted,
    locked,
    next_segment,
    remove_folder,
    segment_folders,
    sweep,
)
from blip2cap.index.images import make_table, read_list, read_table, write_table
from blip2cap.index.job import IndexJob, IndexSummary
from blip2cap.index.known import Known, keys_of
from blip2cap.index.segment import EMBEDDINGS, VECTORS, map_array
from blip2cap.jobs.job import Listener, no_image
from blip2cap.outputs.files import OS_FILES, Files, sync_folder
from blip2cap.outputs.manifest import Manifest
from blip2cap.rows import row_key
from blip2cap.source.inputs import Source

if TYPE_CHECKING:
    import pyarrow as pa

    from blip2cap.jobs.job import Outcome
    from blip2cap.models.base import Model

_NEW_CENTRE = 4
"""The centre is computed anew when the index has this many times as many images as when that was done."""


def update_index(
    job: IndexJob,
    *,
    listener: Listener | None = None,
    stopped: Callable[[], bool] = lambda: False,
    model: Model | None = None,
    embedder: Embedder | None = None,
    stdin: io.BufferedIOBase | None = None,
    files: Files = OS_FILES,
) -> IndexSummary:
    """Bring an index up to date with its inputs, or build it.

    `model` is a loaded model that replaces the one that `job.model` names; `embedder` replaces the run that embeds.
    Raises Blip2CapError: InputError without any image, OutputLockedError while another process updates the index,
    OutputRefusedError if it was made with another model or other settings, or is damaged, OutputError if it cannot be
    written.
    """
    listener = listener or Listener()
    embedder = embedder or RunEmbedder(job, listener, stopped, model)
    inputs = _Inputs(job, stdin)
    source = inputs.open()
    folder = Path(job.index)
    with locked(folder, files):
        try:
            update = _Update(folder, job, listener, files)
            update.recover()
            update.check(embedder.settings(source), source)
            return update.run(inputs, source, embedder)
        except OSError as error:
            raise OutputError(
                f"{folder} cannot be written: {error.strerror or error}. The index is as it was; free disk space or "
                "repair the disk, then run the same command again."
            ) from error


class _Inputs:
    """The inputs of an update, which are walked twice; a list on standard input is kept for that."""

    def __init__(self, job: IndexJob, stdin: io.BufferedIOBase | None) -> None:
        self.job, self._list = job, b""
        options = job.source
        for given in options.files_from:
            if given != "-" and os.path.exists(given) and not os.path.isfile(given):
                raise InputError(f"--files-from {given}: not a regular file. Give `-`, and the list as standard input.")
        if "-" in (*options.inputs, *options.files_from) and (stdin or sys.stdin):
            self._list = (stdin or sys.stdin.buffer).read()

    def open(self) -> Source:
        """Open the inputs. Raises InputError if one of them does not exist."""
        return Source(self.job.source, io.BytesIO(self._list))

    def choose(self, chosen: Mapping[str, int], digests: Path) -> ChosenImages:
        """Open the inputs without the images that need nothing."""
        return ChosenImages(self.job.source, io.BytesIO(self._list), chosen, self.job, digests)


class _Update:
    """One update of an index, which is locked."""

    def __init__(self, folder: Path, job: IndexJob, listener: Listener, files: Files) -> None:
        self.folder, self.job, self.listener, self.files = folder, job, listener, files
        self.num_unread = 0
        """Number of images that keep an older embedding, because they could not be read."""
        self.catalog: Catalog | None = Catalog.read(folder) if os.path.lexists(folder / NAME) else None
        check_unlisted(folder, self.catalog)
        if self.catalog is not None:
            self._mend()
            sweep(folder, self.catalog, files)

    def recover(self) -> None:
        """Make segments of what killed updates have left."""
        listed = {entry.name for entry in self.catalog.segments} if self.catalog else set()
        for inner in segment_folders(self.folder):
            if inner.name in listed:
                continue
            with contextlib.suppress(FileNotFoundError):
                self.files.replace(trace_path(inner / EMBEDDINGS), self.folder / TRACE)
            made_with = finish_rows(inner / EMBEDDINGS, self.files) if (inner / PLAN).exists() else None
            if made_with is None:
                remove_folder(inner, self.files)
                continue
            num_new, num_changed = self._commit(inner, made_with, Known(self.folder, self.catalog))
            done = f"{num_new + num_changed} images of an update that was not finished"
            self.listener.say(f"{self.folder}: kept {done}")

    def check(self, settings: Mapping[str, Any], source: Source) -> None:
        """Raise OutputRefusedError if the index was made with other settings than those of this update."""
        if self.catalog is None:
            return
        made = dict(self.catalog.settings)
        if self.job.same_inputs and source.root and made.get("input_root"):
            made["input_root"] = settings.get("input_root", "")
        dtype = self.job.model.dtype
        wanted = {**settings, "dtype": made.get("dtype") if dtype == "auto" else dtype}
        Manifest(settings=made).check(wanted, str(self.folder))
        if made != dict(self.catalog.settings):
            self._write(replace(self.catalog, settings=made))

    def run(self, inputs: _Inputs, source: Source, embedder: Embedder) -> IndexSummary:
        """Compare, embed, and write what has changed."""
        known = Known(self.folder, self.catalog)
        changes = find_changes(source, known, self.job.decode, retry_failed=self.job.retry_failed)
        if not changes.num_images:
            raise InputError(no_image(source, changes.skipped))
        self._check_removal(len(changes.gone), len(known.numbers))
        for key in changes.gone:
            known.remove(key)
        self.num_unread = changes.num_unread
        outcome, num_new, num_changed = None, 0, 0
        if changes.planned:
            outcome, num_new, num_changed = self._embed(inputs, changes, known, embedder)
        if known.changed:
            assert self.catalog is not None, "an index with images has an index.json"
            self._write_lists(known, self.catalog)
        errors = Counter((now := Known(self.folder, self.catalog)).errors())
        return IndexSummary(
            index=self.job.index,
            num_images=len(now.numbers) - errors.total(),
            num_new=num_new,
            num_changed=num_changed,
            num_unchanged=changes.num_unchanged,
            num_removed=len(changes.gone),
            num_failed=errors.total(),
            failed=dict(errors),
            skipped=changes.skipped,
            damaged=changes.damaged,
            stats=None if outcome is None else outcome.stats,
            stopped=outcome is not None and outcome.stopped,
            num_kept=changes.num_kept + self.num_unread,
            num_unread=self.num_unread,
        )

    def _check_removal(self, num_gone: int, num_known: int) -> None:
        """Refuse to remove most of an index: the inputs may be incomplete, by mistake or as a disk is not mounted."""
        if 2 * num_gone > num_known and not self.job.allow_removal:
            raise OutputRefusedError(
                f"{self.folder}: {num_gone} of its {num_known} images are not among the inputs, and would be removed "
                "from it. Give all inputs that the index shall hold; or --allow-removal; or another --out."
            )

    def _embed(self, inputs: _Inputs, changes: Changes, known: Known, embedder: Embedder) -> tuple[Outcome, int, int]:
        """Embed the planned images into a new segment; return the outcome, and numbers of new and changed images."""
        inner = next_segment(self.folder, self.catalog)
        os.mkdir(inner)
        write_table(make_table(changes.planned), inner / PLAN, self.files)
        sync_folder(self.files, self.folder)
        with contextlib.suppress(FileNotFoundError):
            self.files.replace(self.folder / TRACE, trace_path(inner / EMBEDDINGS))
        chosen = {row_key(*image.key, None): number for number, image in enumerate(changes.planned)}
        dtype = self.catalog.settings["dtype"] if self.catalog else self.job.model.dtype
        outcome = embedder.run(inputs.choose(chosen, inner / DIGESTS), inner / EMBEDDINGS, dtype)
        made_with = finish_rows(inner / EMBEDDINGS, self.files)
        if made_with is None:  # stopped before the first row
            remove_folder(inner, self.files)
            return outcome, 0, 0
        return outcome, *self._commit(inner, made_with, known)

    def _commit(self, inner: Path, made_with: Mapping[str, Any], known: Known) -> tuple[int, int]:
        """Make a segment of the rows in a folder, and add it to index.json; return numbers of new and changed images.

        Images of that name in older segments are removed by this, and other changes in `known` are written.
        """
        import pyarrow.compute as pc

        table, shape = self._list_rows(inner, known), _shape(inner / EMBEDDINGS)
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
        self._write_lists(known, new)
        self._centre_anew()
        num_unread = pc.sum(table["removed"]).as_py() or 0
        self.num_unread += num_unread
        return len(table) - num_unread - num_changed, num_changed

    def _list_rows(self, inner: Path, known: Known) -> pa.Table:
        """Return the list of the images of a segment: of each row, what the plan says, and how it went.

        An image that could not be read is removed from it if an older segment has its embedding.
        """
        import pyarrow as pa

        plan = read_table(inner / PLAN)
        numbers = {key: number for number, key in enumerate(keys_of(plan))}
        places, errors, unread = list[int](), list[str](), list[bool]()
        for batch in build.read_rows(inner / EMBEDDINGS, ["file_name", "file_name_b64", "error"]):
            errors += (new := batch["error"].to_pylist())
            for key, error in zip(keys_of(batch), new, strict=True):
                unread.append(error in UNREAD and known.has_vector(key))
                if key not in numbers:
                    raise damaged(inner / EMBEDDINGS, f"{key.split(chr(0))[0]} is not in {PLAN}")
                places.append(numbers[key])
        table = plan.take(pa.array(places, pa.int64()))
        found = read_digests(inner / DIGESTS, len(plan))
        ok = np.array([not error for error in errors], bool)
        columns = {
            "digest": pa.array([found.get(place, b"") for place in places], pa.binary()),
            "error": pa.array(errors, pa.string()),
            "vector": pa.array(np.where(ok, np.cumsum(ok) - 1, -1), pa.int32()),
            "removed": pa.array(unread, pa.bool_()),
        }
        for name, values in columns.items():
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(at), values)
        return table

    def _write_lists(self, known: Known, catalog: Catalog) -> None:
        """Write the lists that have changed under new names, then index.json, then remove the old ones."""
        entries = list(catalog.segments)
        for segment in sorted(known.changed):
            entry = entries[segment]
            entries[segment] = replace(entry, images=_next_name(entry.images))
            write_table(known.table(segment), self.folder / entry.name / entries[segment].images, self.files)
        known.changed.clear()
        self._write(replace(catalog, segments=tuple(entries)))

    def _write(self, catalog: Catalog) -> None:
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
        self._write(new)

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
            self._write(replace(catalog, segments=here))


def _shape(path: Path) -> tuple[int, int]:
    """Return rows of an image and length of a row, from the type of the column in a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        outer = pq.read_schema(path).field("embedding").type
        return int(outer.list_size), int(outer.value_type.list_size)
    except (OSError, KeyError, AttributeError, pa.ArrowException) as error:
        raise damaged(path, str(error).splitlines()[0]) from error


def _next_name(name: str) -> str:
    """Return the next name of a file that is written anew: images-2.arrow after images-1.arrow."""
    stem, number = Path(name).stem.rsplit("-", 1)
    return f"{stem}-{int(number) + 1}{Path(name).suffix}"
