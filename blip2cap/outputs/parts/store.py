"""Folders of objects that are written whole, and only once: a local folder here, a bucket in `remote`.

A file with its name in place is complete: it was linked there after the disk had it. Two writers of one name cannot
both succeed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from blip2cap.errors import OutputError

OURS = ".blip2cap"
"""The folder beside the parts for what is no data: readers of data sets pass names over that begin with a point."""
TEMPORARY = "tmp-"


class Store(Protocol):
    """A folder of objects. Whatever goes wrong in it is an OutputError."""

    url: str
    """As it was given, with / at its end."""
    scratch: Path
    """A local folder for what is in work; there from `prepare` on."""
    shared: bool
    """Whether other machines may write here that do not see our scratch folder."""

    def check(self) -> None:
        """Raise OutputError if it is plain already that `prepare` will fail; nothing is written."""

    def prepare(self) -> None:
        """Make what must be there before anything is written."""

    def names(self) -> set[str]:
        """List the objects of the folder itself, and the folders in it."""

    def exists(self, name: str) -> bool:
        """Whether an object is there."""

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading, anywhere in it. Raises FileNotFoundError if there is none."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a new object whole; False, and nothing is changed, if there is one of this name."""

    def create_from(self, name: str, path: Path) -> bool:
        """Do the same with the content of a file in `scratch`."""

    def replace(self, name: str, data: bytes) -> None:
        """Write an object whole, in place of another: readers see the old one or the new one."""


def open_store(url: str) -> Store:
    """Open a local folder, or a bucket. Raises UsageError for what cannot hold parts."""
    if "://" not in url:
        return LocalStore(url)
    from blip2cap.outputs.parts.bucket import RemoteStore

    return RemoteStore(url)


@contextmanager
def temporary(folder: Path, what: str = "") -> Iterator[Path]:
    """Give a new empty file, which is removed at the end, and which nobody sweeps while this process lives."""
    while True:
        path = folder / f"{TEMPORARY}{what}{secrets.token_hex(8)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            # Between the two calls somebody may have swept it.
            if _locks(descriptor) and path.exists():
                yield path
                return
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def sweep_temporary(folder: Path) -> None:
    """Remove what killed runs have left half written: nobody holds its lock."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if _locks(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


def _locks(descriptor: int) -> bool:
    """Lock an open file for as long as it is open; say whether nobody else has it locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class LocalStore:
    """A folder on a file system with hard links."""

    shared = False

    def __init__(self, path: str) -> None:
        self.url = f"{path.rstrip('/')}/"
        self.folder = Path(path)
        self.scratch = self.folder / OURS / "work"

    def check(self) -> None:
        """Look for the folder above it."""
        with self._errors():
            os.stat(self.folder.absolute().parent)

    def prepare(self) -> None:
        """Make the folder, but not those above it."""
        with self._errors():
            self.folder.mkdir(exist_ok=True)
            self.scratch.mkdir(parents=True, exist_ok=True)
            sweep_temporary(self.scratch)

    def names(self) -> set[str]:
        """List the names in the folder; none if it is not there."""
        try:
            with self._errors(FileNotFoundError):
                return set(os.listdir(self.folder))
        except FileNotFoundError:
            return set()

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        with self._errors():
            return (self.folder / name).exists()

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        with self._errors(FileNotFoundError):
            return open(self.folder / name, "rb")

    def create(self, name: str, data: bytes) -> bool:
        """Write beside the name, then link: that fails if the name is taken."""
        with self._errors(), self._written(data) as temporary:
            return self._link(temporary, name)

    def create_from(self, name: str, path: Path) -> bool:
        """Link a file that was written in `scratch`."""
        with self._errors():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            return self._link(path, name)

    def replace(self, name: str, data: bytes) -> None:
        """Write beside the name, then rename."""
        with self._errors(), self._written(data) as temporary:
            os.replace(temporary, self.folder / name)
            self._sync(name)

    @contextmanager
    def _written(self, data: bytes) -> Iterator[Path]:
        with temporary(self.scratch) as path:
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield path

    def _link(self, path: Path, name: str) -> bool:
        try:
            os.link(path, self.folder / name)
        except FileExistsError:
            return False
        self._sync(name)
        return True

    def _sync(self, name: str) -> None:
        """Make a new name survive a power cut."""
        descriptor = os.open((self.folder / name).parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _errors(self, *expected: type[OSError]) -> Iterator[None]:
        """Turn what the file system says into an OutputError, but for what the caller expects."""
        try:
            yield
        except expected:
            raise
        except OSError as error:
            make = " Make the folder above it first, or use" if isinstance(error, FileNotFoundError) else " Use"
            raise OutputError(
                f"{self.url} cannot be used: {error.strerror}. The parts that are there are safe.{make} another "
                "--out, on a file system with room, locks and hard links, or run the same command again."
            ) from error
