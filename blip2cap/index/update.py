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
from blip2cap.index.changes import Changes, find_changes
from blip2cap.index.embedding import ChosenImages, Embedder, RunEmbedder, finish_rows
from blip2cap.index.folder import (
    DIGESTS,
    PLAN,
    TRACE,
    locked,
    next_segment,
    remove_folder,
    segment_folders,
)
from blip2cap.index.images import make_table, write_table
from blip2cap.index.job import IndexJob, IndexSummary
from blip2cap.index.known import Known
from blip2cap.index.rows import list_rows
from blip2cap.index.segment import EMBEDDINGS
from blip2cap.index.store import Store
from blip2cap.jobs.job import Listener, no_image
from blip2cap.outputs.files import OS_FILES, Files, sync_folder
from blip2cap.outputs.manifest import Manifest
from blip2cap.rows import row_key
from blip2cap.source.inputs import Source

if TYPE_CHECKING:
    from blip2cap.jobs.job import Outcome
    from blip2cap.models.base import Model


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
            update = _Update(job, listener, stopped, files)
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

    def __init__(self, job: IndexJob, listener: Listener, stopped: Callable[[], bool], files: Files) -> None:
        self.job, self.listener, self.stopped, self.files = job, listener, stopped, files
        folder = self.folder = Path(job.index)
        self.store = Store(folder, listener, files, check=job.check)
        self.known = Known(folder, self.store.catalog)
        self.num_unread = 0
        """Number of images that keep an older embedding, because they could not be read."""

    def recover(self) -> None:
        """Make segments of what killed updates have left."""
        listed = {entry.name for entry in self.store.catalog.segments} if self.store.catalog else set()
        for inner in segment_folders(self.folder):
            if inner.name in listed:
                continue
            with contextlib.suppress(FileNotFoundError):
                self.files.replace(trace_path(inner / EMBEDDINGS), self.folder / TRACE)
            made_with = finish_rows(inner / EMBEDDINGS, self.files) if (inner / PLAN).exists() else None
            if made_with is None:
                remove_folder(inner, self.files)
                continue
            num_new, num_changed = self._add(inner, made_with)
            done = f"{num_new + num_changed} images of an update that was not finished"
            self.listener.say(f"{self.folder}: kept {done}")

    def check(self, settings: Mapping[str, Any], source: Source) -> None:
        """Raise OutputRefusedError if the index was made with other settings than those of this update."""
        if self.store.catalog is None:
            return
        made = dict(self.store.catalog.settings)
        if self.job.same_inputs and source.root and made.get("input_root"):
            made["input_root"] = settings.get("input_root", "")
        dtype = self.job.model.dtype
        wanted = {**settings, "dtype": made.get("dtype") if dtype == "auto" else dtype}
        Manifest(settings=made).check(wanted, str(self.folder))
        if made != dict(self.store.catalog.settings):
            self.store.write(replace(self.store.catalog, settings=made))

    def run(self, inputs: _Inputs, source: Source, embedder: Embedder) -> IndexSummary:
        """Compare, embed, and write what has changed."""
        known = self.known
        changes = find_changes(source, known, self.job.decode, retry_failed=self.job.retry_failed)
        if not changes.num_images:
            raise InputError(no_image(source, changes.skipped))
        self._check_removal(len(changes.gone), len(known.numbers))
        for key in changes.gone:
            known.remove(key)
        self.num_unread = changes.num_unread
        outcome, num_new, num_changed = None, 0, 0
        if changes.planned:
            outcome, num_new, num_changed = self._embed(inputs, changes, embedder)
        if known.changed:
            assert self.store.catalog is not None, "an index with images has an index.json"
            self.store.write_lists(known, self.store.catalog)
        self.store.merge(known, self.stopped)
        errors = Counter(known.errors())
        return IndexSummary(
            index=self.job.index,
            num_images=len(known.numbers) - errors.total(),
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

    def _embed(self, inputs: _Inputs, changes: Changes, embedder: Embedder) -> tuple[Outcome, int, int]:
        """Embed the planned images into a new segment; return the outcome, and numbers of new and changed images."""
        inner = next_segment(self.folder, self.store.catalog)
        os.mkdir(inner)
        write_table(make_table(changes.planned), inner / PLAN, self.files)
        sync_folder(self.files, self.folder)
        with contextlib.suppress(FileNotFoundError):
            self.files.replace(self.folder / TRACE, trace_path(inner / EMBEDDINGS))
        chosen = {row_key(*image.key, None): number for number, image in enumerate(changes.planned)}
        dtype = self.store.catalog.settings["dtype"] if self.store.catalog else self.job.model.dtype
        outcome = embedder.run(inputs.choose(chosen, inner / DIGESTS), inner / EMBEDDINGS, dtype)
        made_with = finish_rows(inner / EMBEDDINGS, self.files)
        if made_with is None:  # stopped before the first row
            remove_folder(inner, self.files)
            return outcome, 0, 0
        return outcome, *self._add(inner, made_with)

    def _add(self, inner: Path, made_with: Mapping[str, Any]) -> tuple[int, int]:
        """Make a segment of the rows in a folder; return numbers of new and changed images."""
        table = list_rows(inner, self.known)
        num_changed = self.store.add(inner, table, made_with, self.known)
        num_unread = int(np.count_nonzero(table["removed"].to_numpy()))
        self.num_unread += num_unread
        return len(table) - num_unread - num_changed, num_changed
