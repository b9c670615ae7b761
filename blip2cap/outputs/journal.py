"""Rows -> an append-only JSONL file that is its own journal.

A batch is one write followed by one fdatasync. A crash leaves whole lines and at most one torn last line, which the
next run removes before it writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import stat
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from blip2cap.errors import OutputError, OutputGoneError, OutputLockedError
from blip2cap.key_set import KeySet
from blip2cap.outputs.existing_rows import Journal, manifest_path, read_lines, read_output
from blip2cap.outputs.files import OS_FILES, Files, behind, close_quietly, sync_folder, write_all
from blip2cap.outputs.manifest import FINISHED, UNFINISHED, Manifest
from blip2cap.rows import Row, row_key

_BLOCK = 1 << 20
_APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND


class JournalSink:
    """Writes rows to one JSONL file with its manifest beside it; resumable.

    Opening takes the lock and reads existing rows. Raises OutputRefusedError if another run holds the lock, or if the
    file is damaged or not made by blip2cap, and OutputError if it cannot be opened. `remedy` is the end of these
    messages, which says what to do.
    """

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool = False,
        retry_failed: bool = False,
        files: Files = OS_FILES,
        remedy: str = "",
    ) -> None:
        self.path = path
        self.manifest: Manifest | None = None
        """Manifest of the existing rows; None without rows."""
        self.journal = Journal()
        self._retry_failed = retry_failed
        self.again: set[str] = set()
        """Keys of the failed rows that this run retries."""
        self._was_asked = False
        self._files = files
        self._remedy = remedy
        self._target = behind(path)
        self._begun = False
        self._file = open_locked(files, path)
        try:
            if not overwrite:
                self.manifest, self.journal = read_output(path, files, retry_failed=retry_failed, remedy=remedy)
            self._recorded = self.manifest
            self._num_failed_before = 0 if retry_failed else self.journal.num_failed
        except BaseException:
            close_quietly(files, self._file)
            raise

    @property
    def finished(self) -> KeySet:
        """Keys of the existing rows; with `retry_failed`, only of those that are ok."""
        return self.journal.finished

    @property
    def num_failed(self) -> int:
        """Number of existing failed rows, without those that are retried."""
        return self._num_failed_before

    @property
    def first_key(self) -> str:
        """Key of the first existing row, "" without rows."""
        return self.journal.first_key

    @property
    def made_with(self) -> Mapping[str, Any] | None:
        """Settings of the existing rows; None without rows."""
        return self.manifest.settings if self.manifest else None

    @property
    def torn_bytes(self) -> int:
        """Length of a torn last line, which `begin` removes."""
        return self.journal.torn_bytes

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise OutputRefusedError if existing rows were made with other settings."""
        if self.manifest is not None:
            self.manifest.check(settings, self.path.name, self._remedy)

    @property
    def failed_keys(self) -> KeySet:
        """Keys of the existing failed rows, also of those that are retried."""
        return self.journal.failed_keys

    def retry(self, asked: Container[str], only: Collection[str] = ()) -> None:
        """Retry only the failed rows with these keys and, if `only` is given, these errors; comes before begin().

        Without a call, all are retried.
        """
        if self._retry_failed:
            self.again, self._was_asked = self.journal.take_out(asked, only), True
            self._num_failed_before = self.journal.num_failed

    def move(self, root: str) -> None:
        """Change the root of the inputs, whose folder was renamed; recorded by begin() or finish()."""
        if self.manifest is not None:
            self.manifest = self.manifest.moved(root)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Check the settings or write them to the manifest, then remove a torn last line; with `overwrite`, all rows.

        With `retry_failed`, also remove the failed rows that are retried. Until `finish`, the manifest says that the
        output is unfinished.
        """
        self.check(settings)
        try:
            if self.manifest is not None:
                self._record(replace(self.manifest, state=UNFINISHED))
            if self._retry_failed and not self._was_asked:
                self.retry(self.journal.to_retry.copy())
            if self.again:
                self._drop_failed()
            else:
                self._files.ftruncate(self._file, self.journal.num_bytes)
                self._files.fsync(self._file)
            if not self.journal.num_bytes:
                sync_folder(self._files, self._target.parent)  # of a link, not the folder that the manifest is in
                self._record(Manifest(settings=settings, state=UNFINISHED))
        except OSError as error:
            raise self._failed(error) from error
        self._begun = True

    def write(self, rows: Iterable[Row]) -> None:
        """Append one batch and wait until the disk has it.

        Raises OutputError after truncating the file to the last whole batch, so that it stays valid.
        """
        assert self._begun, "begin() comes before write()"
        rows = list(rows)
        data = b"".join(row.as_json() for row in rows)
        try:
            self._check_place()
            write_all(self._files, self._file, data)
            self._files.fdatasync(self._file)
        except OSError as error:
            # A failed sync is not retried: the kernel would report success, although pages are lost.
            with contextlib.suppress(OSError):  # if this fails too, the next run removes the torn last line
                self._files.ftruncate(self._file, self.journal.num_bytes)
            raise self._failed(error) from error
        self.journal.num_bytes += len(data)
        for row in rows:
            self.journal.count(row.status, row.error)

    def finish(self, *, stopped: bool = False) -> None:
        """Record in the manifest the counts of the output and, unless the run was `stopped`, that it is finished."""
        counts = {"ok": self.journal.num_ok, "failed": dict(self.journal.failed)}
        try:
            self._files.fdatasync(self._file)  # a killed run may have left rows that are not on the disk yet
            self._check_place()
            if self.manifest is not None:
                state = FINISHED if self.manifest.state == UNFINISHED and not stopped else self.manifest.state
                self._record(replace(self.manifest, counts=counts, state=state))
        except OSError as error:
            raise self._failed(error) from error

    def remove(self) -> None:
        """Remove journal and manifest; empty the journal first, so that a crash leaves no rows without manifest."""
        try:
            self._files.ftruncate(self._file, 0)
            self._files.fsync(self._file)
            for path in (manifest_path(self.path), self._target):  # the locked file last
                with contextlib.suppress(FileNotFoundError):
                    self._files.unlink(path)
            self._begun = True  # a file of this name now belongs to another run: close() must not remove it
            sync_folder(self._files, self._target.parent)
        except FileNotFoundError as error:
            raise OutputGoneError(f"{self.path.parent} was removed: {error.strerror}.") from error
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Release the lock; remove the file if opening created it and nothing was written."""
        with contextlib.suppress(OSError):  # rows are safe, whatever fails here
            if not self._begun and self._files.fstat(self._file).st_size == 0 and not self._has_manifest():
                self._files.unlink(self._target)
        close_quietly(self._files, self._file)

    def _record(self, manifest: Manifest) -> None:
        """Write the manifest, unless the disk has it already."""
        if manifest != self._recorded:
            manifest.write(manifest_path(self.path), self._files)
        self.manifest = self._recorded = manifest

    def _has_manifest(self) -> bool:
        try:
            self._files.stat(manifest_path(self.path))
        except FileNotFoundError:
            return False
        return True

    def _check_place(self) -> None:
        """Raise OutputError if the file was removed or renamed: its rows would be lost."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self._files.stat(self.path), self._files.fstat(self._file)):
                return
        raise OutputError(
            f"{self.path} was removed or replaced while it was being written, and its rows with it. "
            "Run the same command again."
        )

    def _drop_failed(self) -> None:
        """Copy the rows that stay to a new file, and lock it before it replaces the old one."""
        temporary = self._target.with_name(f"{self._target.name}.tmp")
        new, num_bytes, block = self._files.open(temporary, _APPEND | os.O_TRUNC), 0, bytearray()
        try:
            self._files.lock(new)
            self._files.fchmod(new, stat.S_IMODE(self._files.fstat(self._file).st_mode))
            label = self.manifest.label if self.manifest else ""
            for line in read_lines(self._files, self.path):
                row = json.loads(line) if line.endswith(b"\n") else None
                if row and row_key(row["file_name"], row["file_name_b64"], row.get(label)) not in self.again:
                    block += line
                    num_bytes += len(line)
                if len(block) > _BLOCK:
                    write_all(self._files, new, memoryview(block))
                    block = bytearray()
            write_all(self._files, new, memoryview(block))
            self._files.fsync(new)
            self._files.replace(temporary, self._target)
        except BaseException:
            with contextlib.suppress(OSError):
                self._files.unlink(temporary)
            close_quietly(self._files, new)
            raise
        old, self._file = self._file, new
        self.journal.num_bytes = num_bytes
        close_quietly(self._files, old)
        sync_folder(self._files, self._target.parent)

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path} cannot be written: {error.strerror}. Its rows so far are safe; "
            "free disk space or repair the disk, then run the same command again."
        )


def open_locked(files: Files, path: Path) -> int:
    """Open or create `path` for appending, and lock it; the lock ends with the process in any case."""
    while True:
        try:
            file = files.open(path, _APPEND)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise OutputGoneError(
                    f"{path} cannot be opened for writing: its folder does not exist. Create it first, with "
                    f"mkdir -p {shlex.quote(str(path.parent))}, or use another --out."
                ) from error
            raise OutputError(f"{path} cannot be opened for writing: {error.strerror}. Use another --out.") from error
        try:
            files.lock(file)
            # Between open and lock, a run without rows may have removed the file: then open and lock again.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(files.stat(path), files.fstat(file)):
                    return file
        except BlockingIOError as error:
            close_quietly(files, file)
            raise OutputLockedError(
                f"{path} is being written by another blip2cap run. Wait for it, or use another --out."
            ) from error
        except OSError as error:
            close_quietly(files, file)
            raise OutputError(
                f"{path} cannot be locked: {error.strerror}. Use another --out, on a file system with locks."
            ) from error
        close_quietly(files, file)
