"""The file operations of outputs, behind a protocol, so that a test can make any of them fail; atomic writes.

Python retries calls that a signal interrupts (EINTR), so an EINTR that is raised is treated like any other error.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from blip2cap.errors import OutputError, OutputLockedError

_BLOCK = 1 << 20


class Files(Protocol):
    """The operations that outputs use; every method may raise OSError."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file or a folder; no child process inherits it."""

    def read(self, file: int, num_bytes: int) -> bytes:
        """Read up to `num_bytes`; return b"" at end of file."""

    def write(self, file: int, data: bytes | memoryview) -> int:
        """Write all or a part; return the number of bytes that were written."""

    def fdatasync(self, file: int) -> None:
        """Wait until content and length are on the disk."""

    def fsync(self, file: int) -> None:
        """Wait until a file with its metadata, or the names in a folder, are on the disk."""

    def ftruncate(self, file: int, length: int) -> None:
        """Truncate a file."""

    def lock(self, file: int) -> None:
        """Lock an open file. Raises BlockingIOError if it is locked."""

    def close(self, file: int) -> None:
        """Close a file, which releases its lock."""

    def fstat(self, file: int) -> os.stat_result:
        """Return the metadata of an open file."""

    def fchmod(self, file: int, mode: int) -> None:
        """Set the permissions of an open file."""

    def stat(self, path: Path) -> os.stat_result:
        """Return the metadata of the file at a path; follow links."""

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file; an existing target is replaced."""

    def unlink(self, path: Path) -> None:
        """Remove a name."""


class OsFiles:
    """The real file operations."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file or a folder; no child process inherits it."""
        return os.open(path, flags | os.O_CLOEXEC, 0o666)

    def read(self, file: int, num_bytes: int) -> bytes:
        """Read up to `num_bytes`."""
        return os.read(file, num_bytes)

    def write(self, file: int, data: bytes | memoryview) -> int:
        """Write all or a part."""
        return os.write(file, data)

    def fdatasync(self, file: int) -> None:
        """Wait until content and length are on the disk; macOS has no fdatasync."""
        getattr(os, "fdatasync", os.fsync)(file)

    def fsync(self, file: int) -> None:
        """Wait until everything is on the disk."""
        os.fsync(file)

    def ftruncate(self, file: int, length: int) -> None:
        """Truncate a file."""
        os.ftruncate(file, length)

    def lock(self, file: int) -> None:
        """Lock a file until it is closed, or this process ends."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self, file: int) -> None:
        """Close a file."""
        os.close(file)

    def fstat(self, file: int) -> os.stat_result:
        """Return the metadata of an open file."""
        return os.fstat(file)

    def fchmod(self, file: int, mode: int) -> None:
        """Set the permissions of an open file."""
        os.fchmod(file, mode)

    def stat(self, path: Path) -> os.stat_result:
        """Return the metadata of the file that a path leads to."""
        return os.stat(path)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file; an existing target is replaced."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        os.unlink(path)


OS_FILES = OsFiles()


def behind(path: Path) -> Path:
    """Return the path, or the target if it is a symbolic link: a rename would replace the link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def replaceable(files: Files, path: Path) -> os.stat_result | None:
    """Return the metadata of the regular file at a path, also behind links, or None if there is none.

    Raises OSError for anything else, which a rename would remove: a folder, a device, a FIFO, a socket, or a link to an
    open file of a process, as /dev/stdout is.
    """
    try:
        status = files.stat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode) or _leads_to_descriptor(path):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return status


def _leads_to_descriptor(path: Path) -> bool:
    while path.is_symlink():
        folder = os.path.realpath(path.parent)
        if folder.startswith("/proc/"):
            return True
        path = Path(folder, os.readlink(path))
    return False


def read_blocks(files: Files, path: Path) -> Iterator[bytes]:
    """Yield the content of a file in blocks."""
    file = files.open(path, os.O_RDONLY)
    try:
        while block := files.read(file, _BLOCK):
            yield block
    finally:
        files.close(file)


def close_quietly(files: Files, file: int) -> None:
    """Close a file and ignore errors: everything that must be safe has been synced."""
    with contextlib.suppress(OSError):
        files.close(file)


@contextmanager
def holding_lock(files: Files, file: int, path: Path, *, busy: str) -> Iterator[None]:
    """Hold the lock of an open file, and close the file in any case. `path` is named in messages.

    Raises OutputLockedError with the message `busy` while another process has it, OutputError where locks do not work.
    """
    try:
        try:
            files.lock(file)
        except BlockingIOError as error:
            raise OutputLockedError(busy) from error
        except OSError as error:
            raise OutputError(f"{path} cannot be locked: {error.strerror}. Use a file system with locks.") from error
        yield
    finally:
        close_quietly(files, file)


def write_all(files: Files, file: int, data: bytes | memoryview) -> None:
    """Write all data, in several writes if necessary."""
    view = memoryview(data)
    while view:
        taken = files.write(file, view)
        if not taken:
            raise OSError(errno.EIO, "a write of 0 bytes")
        view = view[taken:]


def sync_library_file(files: Files, path: Path) -> None:
    """Write a file that a library has made to the disk; give it the permissions that a new file has in its folder.

    safetensors makes files that only their owner can read.
    """
    file = files.open(path, os.O_RDONLY)
    try:
        mode = files.stat(path.parent).st_mode & 0o666  # as the umask left it when the folder was made
        files.fchmod(file, mode)
        files.fsync(file)
    finally:
        close_quietly(files, file)


def sync_folder(files: Files, folder: Path) -> None:
    """Wait until new, renamed and removed names in a folder are on the disk."""
    file = files.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.fsync(file)
    finally:
        files.close(file)


@contextmanager
def replacing(files: Files, path: Path, *, unique: bool = False, sync_name: bool = True) -> Iterator[int]:
    """Yield a new open file that replaces `path` when the block is complete; an exception leaves `path` unchanged.

    Links are followed. Raises OSError if something else than a regular file is there.

    Until then its name ends in .tmp. It is NAME.tmp for a file guarded by a lock, so that the next run overwrites what
    a killed run has left. For a file without a lock use a `unique` name: several processes may write at the same time,
    and the last one wins. That name is short, because `path` may have the greatest possible length.

    The new file has the permissions of the old one. Without `sync_name`, a power cut may restore the old file. An
    OSError names `path`.
    """
    target = behind(path)
    temporary = target.with_name(f".blip2cap-{secrets.token_hex(8)}.tmp" if unique else f"{target.name}.tmp")
    try:
        old = replaceable(files, path)
        file = files.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            if old is not None:
                files.fchmod(file, stat.S_IMODE(old.st_mode))
            yield file
            files.fsync(file)
        finally:
            files.close(file)
        files.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            files.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, temporary, str(temporary)):
            error.filename, error.filename2 = str(path), None  # the user does not know the temporary name
        raise
    if sync_name:
        sync_folder(files, target.parent)


def write_whole(files: Files, path: Path, data: bytes, *, unique: bool = False, sync_name: bool = True) -> None:
    """Replace a file in one step, as `replacing` does."""
    with replacing(files, path, unique=unique, sync_name=sync_name) as file:
        write_all(files, file, data)


class RawFile(io.RawIOBase):
    """An open file for writing, as a Python file object; closing it leaves the descriptor open."""

    def __init__(self, files: Files, file: int) -> None:
        self._files, self._file = files, file
        self._position = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position of the next byte."""
        return self._position

    def write(self, data: Any) -> int:
        """Write all or a part; return the number of bytes that were written."""
        taken = self._files.write(self._file, data)
        self._position += taken
        return taken


@contextmanager
def replacing_stream(files: Files, path: Path) -> Iterator[BinaryIO]:
    """Yield a buffered file object that replaces `path` as `replacing` does; no lock guards it."""
    with replacing(files, path, unique=True) as file, io.BufferedWriter(RawFile(files, file), _BLOCK) as stream:
        yield cast(BinaryIO, stream)
