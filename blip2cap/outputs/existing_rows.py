"""Existing rows of an output: what a JSONL file holds before a run adds to it.

A last line that is torn is counted; damage anywhere else is refused with its line number: nothing is repaired by
guessing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip2cap.errors import OutputError, OutputRefusedError
from blip2cap.key_set import KeySet
from blip2cap.outputs.files import OS_FILES, Files, read_blocks
from blip2cap.outputs.manifest import USE_ANOTHER, Manifest
from blip2cap.rows import row_key

Keyed = tuple[str, str, str]
"""Key, status and error of a row."""


@dataclass(kw_only=True, slots=True)
class Journal:
    """Content of a JSONL file before a run adds to it."""

    finished: KeySet = field(default_factory=KeySet)
    """Keys of its rows; without failed rows if these may be retried."""
    num_ok: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Number of failed rows by error."""
    failed_keys: KeySet = field(default_factory=KeySet)
    """Keys of the failed rows."""
    first_key: str = ""
    """Key of the first row."""
    to_retry: dict[str, str] = field(default_factory=dict)
    """Keys of failed rows that may be retried, with their errors."""
    num_bytes: int = 0
    """Length of its whole lines."""
    torn_bytes: int = 0
    """Length of a torn last line after them."""

    @property
    def num_failed(self) -> int:
        """Number of failed rows."""
        return self.failed.total()

    def take_out(self, asked: Container[str], only: Collection[str] = ()) -> set[str]:
        """Remove the failed rows that are `asked` for, and so retried, from the counts; return their keys.

        With `only`, just those that failed with these errors are retried. All others are finished.
        """
        keys = {key for key, error in self.to_retry.items() if key in asked and (not only or error in only)}
        self.failed -= Counter(self.to_retry.pop(key) for key in keys)
        for key in self.to_retry:
            self.finished.add(key)
        self.to_retry.clear()
        return keys

    def count(self, status: str, error: str) -> None:
        """Count one more row."""
        if status == "ok":
            self.num_ok += 1
        else:
            self.failed[error] += 1

    def note(self, rows: Iterable[Keyed], *, retry_failed: bool) -> None:
        """Count existing rows; failed ones are not finished if they may be retried."""
        finished = []
        for key, status, error in rows:
            self.first_key = self.first_key or key
            self.count(status, error)
            if status != "ok":
                self.failed_keys.add(key)
                if retry_failed:
                    self.to_retry[key] = error
                    continue
            finished.append(key)
        self.finished.extend(finished)


def read_pieces(files: Files, path: Path) -> Iterator[bytes]:
    """Yield a file in pieces of whole lines; a last piece without a newline at its end is a torn line."""
    rest = b""
    for block in read_blocks(files, path):
        lines = rest + block
        end = lines.rfind(b"\n") + 1
        lines, rest = lines[:end], lines[end:]
        if lines:
            yield lines
    if rest:
        yield rest


def read_lines(files: Files, path: Path) -> Iterator[bytes]:
    """Yield the lines of a file with their newlines; a last line without one is torn."""
    for piece in read_pieces(files, path):
        yield from piece.splitlines(keepends=True)


def read_journal(
    path: Path,
    files: Files = OS_FILES,
    *,
    label: str = "",
    retry_failed: bool = False,
    remedy: str = USE_ANOTHER,
) -> Journal:
    """Read a journal; a missing file counts as empty. With `retry_failed`, no failed row is finished.

    The column `label` tells the rows of an image apart.

    Raises OutputRefusedError with the line number if a whole line is not a row, OutputError if it cannot be read.
    """
    journal, num_lines, read = Journal(), 0, _reader(label)
    try:
        for piece in read_pieces(files, path):
            if not piece.endswith(b"\n"):
                journal.torn_bytes = len(piece)
                break
            try:
                journal.note(read(piece), retry_failed=retry_failed)
            except ValueError as error:
                number = num_lines + _num_whole(read, piece) + 1
                raise OutputRefusedError(
                    f"{path}:{number} is damaged: not a row of blip2cap. Repair or delete that line; otherwise "
                    f"{remedy[0].lower()}{remedy[1:]}"
                ) from error
            num_lines += piece.count(b"\n")
            journal.num_bytes += len(piece)
    except FileNotFoundError:
        return journal
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}. Use another --out.") from error
    return journal


def _reader(label: str) -> Callable[[bytes], list[Keyed]]:
    """Return a function that reads lines, each with its newline. It raises ValueError if one is not a row.

    A run with a million finished rows spends most of its time here. msgspec passes over the columns that no key needs.
    """
    import msgspec

    names = ("file_name", "file_name_b64", *([label] if label else []), "status", "error")
    row = msgspec.defstruct("Row", [(name, str) for name in names], gc=False)
    decode = msgspec.json.Decoder(row).decode

    def read(lines: bytes) -> list[Keyed]:
        lines.decode()  # msgspec does not look into the strings that it passes over
        rows: list[Any] = [decode(line) for line in lines[:-1].split(b"\n")]
        return [
            (row_key(row.file_name, row.file_name_b64, getattr(row, label) if label else None), row.status, row.error)
            for row in rows
        ]

    return read


def _num_whole(read: Callable[[bytes], object], piece: bytes) -> int:
    """Return the number of lines before the first that cannot be read."""
    lines = piece[:-1].split(b"\n")
    for number, line in enumerate(lines):
        try:
            read(line + b"\n")
        except ValueError:
            return number
    return len(lines)


def manifest_path(path: Path) -> Path:
    """Return the path of the manifest of an output."""
    return path.with_name(f"{path.name}.run.json")


def read_output(
    path: Path, files: Files = OS_FILES, *, retry_failed: bool = False, remedy: str = ""
) -> tuple[Manifest | None, Journal]:
    """Read an output and the manifest of its rows, None if there are no rows.

    Raises OutputRefusedError if one is damaged, or if rows have no manifest.
    """
    manifest = Manifest.read(manifest_path(path), files, remedy)
    label = manifest.label if manifest else ""
    journal = read_journal(path, files, label=label, retry_failed=retry_failed, remedy=remedy or USE_ANOTHER)
    if manifest is None and (journal.num_bytes or journal.torn_bytes):
        raise OutputRefusedError(
            f"{path} exists, but its manifest {manifest_path(path).name} does not: how its "
            f"rows were made is unknown. {remedy or 'Restore it from a copy, or use another --out.'}"
        )
    return manifest if journal.num_bytes else None, journal
