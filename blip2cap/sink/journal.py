"""Rows -> an append-only JSONL file that is its own journal.

A batch is one write followed by one fdatasync. What a cut leaves is whole lines and at most one torn tail, which the
next run cuts off before it writes. Damage anywhere else is refused with its line number: nothing is repaired by
guessing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blip2cap.errors import OutputError, OutputRefusedError
from blip2cap.keys import Keys
from blip2cap.records import Row, row_key
from blip2cap.sink.manifest import Manifest

_BLOCK = 1 << 20
_raw_decode = json.JSONDecoder().raw_decode
_fdatasync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


@dataclass(kw_only=True, slots=True)
class Journal:
    """What a JSONL file holds before a run adds to it."""

    finished: Keys = field(default_factory=Keys)
    """Keys of its rows, failed ones too."""
    num_ok: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Failed rows by error."""
    num_bytes: int = 0
    """Length of its whole lines."""
    torn_bytes: int = 0
    """Length of the torn tail after them."""

    @property
    def num_failed(self) -> int:
        """How many of its rows have failed."""
        return self.failed.total()

    def count(self, status: str, error: str) -> None:
        """Count one more row."""
        if status == "ok":
            self.num_ok += 1
        else:
            self.failed[error] += 1


def _parse(line: str) -> Any:
    """Parse a line as `json.loads` does, which takes longer to look for blanks around it."""
    line = line.strip(" \t\r")
    row, end = _raw_decode(line)
    return row if end == len(line) else json.loads(line)  # raises: there is more on it than one row


def read_journal(path: Path) -> Journal:
    """Read what is there; a file that does not exist holds nothing.

    Raises OutputRefusedError with the line number if a whole line is no row, OutputError if it cannot be read.
    """
    journal, rest, number = Journal(), b"", 0
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return journal
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}. Use another --out.") from error
    with file:
        while block := file.read(_BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                number += 1
                try:
                    row = _parse(line.decode())
                    journal.finished.add(row_key(row["file_name"], row["file_name_b64"], row.get("question")))
                    journal.count(row["status"], row["error"])
                except (ValueError, KeyError, TypeError) as error:
                    raise OutputRefusedError(
                        f"{path}:{number} is damaged: not a row of blip2cap. Repair or delete that line, "
                        "use another --out, or --overwrite."
                    ) from error
                journal.num_bytes += len(line) + 1
    journal.torn_bytes = len(rest)
    return journal


def manifest_path(path: Path) -> Path:
    """Where the manifest of an output lies."""
    return path.with_name(f"{path.name}.run.json")


def read_output(path: Path) -> tuple[Manifest | None, Journal]:
    """Read an output and its manifest. Raises OutputRefusedError if one is damaged, or if rows have no manifest."""
    manifest, journal = Manifest.read(manifest_path(path)), read_journal(path)
    if manifest is None and (journal.num_bytes or journal.torn_bytes):
        raise OutputRefusedError(
            f"{path} exists, but its manifest {manifest_path(path).name} does not: nothing says how its "
            "rows were made. Use another --out, or --overwrite."
        )
    return manifest, journal


class JournalSink:
    """Rows to one JSONL file, resumable, with its manifest beside it.

    Opening takes the lock and reads what is there. Raises OutputRefusedError if another run holds it, if it is
    damaged or not ours, and OutputError if it cannot be opened.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self.manifest: Manifest | None = None
        self.journal = Journal()
        self._overwrite = overwrite
        self._begun = False
        self._file = _open_locked(path)
        try:
            if not overwrite:
                self.manifest, self.journal = read_output(path)
            self._num_failed_before = self.journal.num_failed
        except BaseException:
            os.close(self._file)
            raise

    @property
    def finished(self) -> Keys:
        """Keys of the rows that were there when it was opened."""
        return self.journal.finished

    @property
    def num_failed(self) -> int:
        """How many of those have failed."""
        return self._num_failed_before

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise OutputRefusedError if rows are there that were made with other settings."""
        if self.manifest is not None and self.journal.num_bytes:
            self.manifest.check(settings, self.path.name)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Check the settings or write them to the manifest, then cut the torn tail, or everything with `overwrite`."""
        self.check(settings)
        try:
            os.ftruncate(self._file, self.journal.num_bytes)
            os.fsync(self._file)
            if self.manifest is None or not self.journal.num_bytes:
                self.manifest = Manifest(settings=settings)
                self.manifest.write(manifest_path(self.path))
        except OSError as error:
            raise self._failed(error) from error
        self._begun = True

    def write(self, rows: Iterable[Row]) -> None:
        """Append one batch and wait until the disk has it.

        Raises OutputError after cutting back to the last whole batch, so that the file stays valid.
        """
        assert self._begun, "begin() comes before write()"
        rows = list(rows)
        data = b"".join(row.as_json() for row in rows)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            _fdatasync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):  # if this fails too, the next run finds a torn tail and cuts it
                os.ftruncate(self._file, self.journal.num_bytes)
            raise self._failed(error) from error
        self.journal.num_bytes += len(data)
        for row in rows:
            self.journal.count(row.status, row.error)

    def finish(self) -> None:
        """Note in the manifest what the output holds now."""
        assert self.manifest is not None, "begin() comes before finish()"
        counts = {"ok": self.journal.num_ok, "failed": dict(self.journal.failed)}
        try:
            replace(self.manifest, counts=counts).write(manifest_path(self.path))
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Let go of the lock; an empty file that opening made is removed again."""
        if not self._begun and os.fstat(self._file).st_size == 0 and not manifest_path(self.path).exists():
            self.path.resolve().unlink(missing_ok=True)  # of a link, the file behind it
        os.close(self._file)

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path} cannot be written: {error.strerror}. Its rows so far are safe; "
            "make room or repair the disk, then run the same command again."
        )


def _open_locked(path: Path) -> int:
    """Open or create `path` for appending and lock it; the lock goes with the process, however that ends."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            make = "Make its folder first, or use" if isinstance(error, FileNotFoundError) else "Use"
            raise OutputError(
                f"{path} cannot be opened for writing: {error.strerror}. {make} another --out."
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise OutputRefusedError(
                f"{path} is being written by another blip2cap run. Wait for it, or use another --out."
            ) from error
        except OSError as error:
            os.close(file)
            raise OutputError(
                f"{path} cannot be locked: {error.strerror}. Use another --out, on a file system with locks."
            ) from error
        # Between open and lock, a run that never began may have removed the name: then lock what is there now.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file)):
                return file
        os.close(file)
