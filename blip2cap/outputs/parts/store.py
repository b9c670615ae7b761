"""Folders of objects that are written atomically, and only once: local folders here, buckets in `bucket`.

A file under its final name is complete: it gets that name when it is on the disk. Of two writers of one name, only one
can succeed.
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
"""Folder beside the parts for all other files: readers of data sets skip names that begin with a dot."""
TEMPORARY = "tmp-"


class Store(Protocol):
    """A folder of objects. All its errors are OutputErrors."""

    url: str
    """The given name, with / at its end."""
    scratch: Path
    """Local folder for parts in progress; exists after `prepare`."""
    shared: bool
    """True if machines may write here that do not see the scratch folder."""

    def check(self) -> None:
        """Raise OutputError if `prepare` would certainly fail; nothing is written."""

    def prepare(self) -> None:
        """Create the folders that must exist before anything is written."""

    def names(self) -> set[str]:
        """List the objects and folders directly in the folder."""

    def exists(self, name: str) -> bool:
        """Return whether an object exists."""

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading, anywhere in it. Raises FileNotFoundError if there is none."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a new object atomically; if the name exists, change nothing and return False."""

    def create_from(self, name: str, path: Path) -> bool:
        """Do the same with the content of a file in `scratch`."""

    def replace(self, name: str, data: bytes) -> None:
        """Replace an object atomically: readers see the old one or the new one."""


def open_store(url: str) -> Store:
    """Open a local folder or a bucket. Raises UsageError for a URL that cannot hold parts."""
    if "://" not in url:
        return LocalStore(url)
    from blip2cap.outputs.parts.bucket import RemoteStore

    return RemoteStore(url)


@contextmanager
def temporary(folder: Path, what: str = "") -> Iterator[Path]:
    """Yield the path of a new empty file, which is removed at the end; its lock protects it from `sweep_temporary`."""
    while True:
        path = folder / f"{TEMPORARY}{what}{secrets.token_hex(8)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            # Between the two calls another process may have swept it.
            if _locks(descriptor) and path.exists():
                yield path
                return
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def sweep_temporary(folder: Path) -> None:
    """Remove incomplete files of killed runs, which no process has locked."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if _locks(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


def _locks(descriptor: int) -> bool:
    """Lock an open file until it is closed; return False if another process has locked it."""
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
        """Check that the parent folder exists."""
        with self._errors():
            os.stat(self.folder.absolute().parent)

    def prepare(self) -> None:
        """Create the folder, but not its parents."""
        with self._errors():
            self.folder.mkdir(exist_ok=True)
            self.scratch.mkdir(parents=True, exist_ok=True)
            sweep_temporary(self.scratch)

    def names(self) -> set[str]:
        """List the names in the folder; none if it does not exist."""
        try:
            with self._errors(FileNotFoundError):
                return set(os.listdir(self.folder))
        except FileNotFoundError:
            return set()

    def exists(self, name: str) -> bool:
        """Return whether a file of this name exists."""
        with self._errors():
            return (self.folder / name).exists()

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        with self._errors(FileNotFoundError):
            return open(self.folder / name, "rb")

    def create(self, name: str, data: bytes) -> bool:
        """Write a temporary file, then link it: that fails if the name exists."""
        with self._errors(), self._written(data) as temporary:
            return self._link(temporary, name)

    def create_from(self, name: str, path: Path) -> bool:
        """Link a file in `scratch`."""
        with self._errors():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            return self._link(path, name)

    def replace(self, name: str, data: bytes) -> None:
        """Write a temporary file, then rename it."""
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
        """Turn an OSError into an OutputError, except those that the caller expects."""
        try:
            yield
        except expected:
            raise
        except OSError as error:
            make = " Create its parent folder first, or use" if isinstance(error, FileNotFoundError) else " Use"
            raise OutputError(
                f"{self.url} cannot be used: {error.strerror}. Existing parts are safe.{make} another "
                "--out, on a file system with free space, locks and hard links, or run the same command again."
            ) from error
