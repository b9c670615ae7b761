"""The operations on files that outputs are made of, as an argument: a test can make any of them fail.

An EINTR that comes this far is an error like any other: where a signal may interrupt a call, Python itself goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

_BLOCK = 1 << 20


class Files(Protocol):
    """What outputs ask of the operating system; every method may raise OSError."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file or a folder; no child process inherits it."""

    def read(self, file: int, num_bytes: int) -> bytes:
        """Read on, at most so much; nothing at the end."""

    def write(self, file: int, data: bytes | memoryview) -> int:
        """Write, and say how much of it was taken."""

    def fdatasync(self, file: int) -> None:
        """Wait until the disk has what was written, and its length."""

    def fsync(self, file: int) -> None:
        """Wait until the disk has everything about a file, or the names in a folder."""

    def ftruncate(self, file: int, length: int) -> None:
        """Cut a file."""

    def lock(self, file: int) -> None:
        """Lock an open file. Raises BlockingIOError if it is locked."""

    def close(self, file: int) -> None:
        """Close it; its lock is gone."""

    def fstat(self, file: int) -> os.stat_result:
        """Say what an open file is."""

    def fchmod(self, file: int, mode: int) -> None:
        """Say who may read and write an open file."""

    def stat(self, path: Path) -> os.stat_result:
        """Say what a name leads to."""

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file; what had the name before is gone."""

    def unlink(self, path: Path) -> None:
        """Remove a name."""


class OsFiles:
    """The real ones."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file or a folder; no child process inherits it."""
        return os.open(path, flags | os.O_CLOEXEC, 0o666)

    def read(self, file: int, num_bytes: int) -> bytes:
        """Read on."""
        return os.read(file, num_bytes)

    def write(self, file: int, data: bytes | memoryview) -> int:
        """Write a part or all."""
        return os.write(file, data)

    def fdatasync(self, file: int) -> None:
        """Wait until the disk has what was written; macOS has only fsync for that."""
        getattr(os, "fdatasync", os.fsync)(file)

    def fsync(self, file: int) -> None:
        """Wait until the disk has everything."""
        os.fsync(file)

    def ftruncate(self, file: int, length: int) -> None:
        """Cut a file."""
        os.ftruncate(file, length)

    def lock(self, file: int) -> None:
        """Lock it for as long as it is open, however this process ends."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self, file: int) -> None:
        """Close it."""
        os.close(file)

    def fstat(self, file: int) -> os.stat_result:
        """Say what an open file is."""
        return os.fstat(file)

    def fchmod(self, file: int, mode: int) -> None:
        """Set its permissions."""
        os.fchmod(file, mode)

    def stat(self, path: Path) -> os.stat_result:
        """Say what a name leads to."""
        return os.stat(path)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        os.unlink(path)


OS_FILES = OsFiles()


def behind(path: Path) -> Path:
    """Return the path itself, or, of a link, that of the file behind it: a rename would replace the link."""
    return path.resolve() if path.is_symlink() else path


def read_blocks(files: Files, path: Path) -> Iterator[bytes]:
    """Yield the content of a file, piece by piece."""
    file = files.open(path, os.O_RDONLY)
    try:
        while block := files.read(file, _BLOCK):
            yield block
    finally:
        files.close(file)


def close_quietly(files: Files, file: int) -> None:
    """Close a file of which nothing more is wanted: what was to be safe has been synced."""
    with contextlib.suppress(OSError):
        files.close(file)


def write_all(files: Files, file: int, data: bytes | memoryview) -> None:
    """Write all of it, however little a single write takes."""
    view = memoryview(data)
    while view:
        taken = files.write(file, view)
        if not taken:
            raise OSError(errno.EIO, "a write took nothing")
        view = view[taken:]


def sync_folder(files: Files, folder: Path) -> None:
    """Make new, renamed and removed names in a folder survive a power cut."""
    file = files.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.fsync(file)
    finally:
        files.close(file)


@contextmanager
def replacing(files: Files, path: Path) -> Iterator[int]:
    """Give a new open file that takes the place of `path` when the block ends well; else nothing has happened.

    Until then its name ends in .tmp, which no reader takes for an output.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        file = files.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with contextlib.suppress(FileNotFoundError):  # what is private stays so
                files.fchmod(file, stat.S_IMODE(files.stat(path).st_mode))
            yield file
            files.fsync(file)
        finally:
            files.close(file)
        files.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.unlink(temporary)
        raise
    sync_folder(files, path.parent)


def write_whole(files: Files, path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(files, path) as file:
        write_all(files, file, data)
