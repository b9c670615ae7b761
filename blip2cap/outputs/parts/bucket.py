"""Buckets as folders of objects, through fsspec.

Covered: S3 and stores with its protocol; Google Cloud Storage; `memory://`, in one process. A bucket must support
creating an object only if it does not exist (`If-None-Match: *`), so that one of several writers wins. Not covered:
other protocols, for which this is unknown.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from blip2cap.errors import OutputError, UsageError
from blip2cap.outputs.parts.store import sweep_temporary

_PROTOCOLS = ("s3", "s3a", "gs", "gcs", "memory")
_CONFLICTS = {"ConditionalRequestConflict", "OperationAborted"}
"""Codes of S3 while another process writes the same name: it is not decided yet which one wins."""
_TAKEN = {"PreconditionFailed"}
_NUM_TRIES = 8
_FIRST_PAUSE_S = 0.1
_READ_BYTES = 1 << 20


class RemoteStore:
    """A prefix of a bucket. Buckets make an upload visible only when it is complete."""

    shared = True

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        protocol = url.split("://")[0]
        if protocol not in _PROTOCOLS:
            raise UsageError(
                f"--out {url}: {protocol}:// is not known to be safe when several processes write. "
                "Use s3://, gs:// or a local folder."
            )
        try:
            with self._errors():
                # Without a cache of listings: other machines write here too.
                self.files, root = url_to_fs(url, use_listings_cache=False)
        except OutputError as error:
            if isinstance(error.__cause__, ImportError):
                raise UsageError(f"--out {url}: {error.__cause__}. Install blip2cap[remote] for it.") from error
            raise
        self.root = str(root).rstrip("/")
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self.scratch = Path(cache, "blip2cap", "parts", hashlib.sha256(url.encode()).hexdigest()[:16])

    def check(self) -> None:
        """Do nothing: a prefix need not be created, and `names` has already asked the bucket."""

    def prepare(self) -> None:
        """Create the local folder for parts in progress; a prefix need not be created."""
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
            sweep_temporary(self.scratch)
        except OSError as error:
            raise OutputError(
                f"{self.scratch} cannot be created: {error.strerror}. Parts in progress are kept there; set "
                "XDG_CACHE_HOME to a folder on a disk of this machine."
            ) from error

    def names(self) -> set[str]:
        """List the names directly below the prefix."""
        with self._errors():
            try:
                paths = self.files.ls(self.root, detail=False)
            except FileNotFoundError:
                return set()
        return {str(path).rstrip("/").rsplit("/", 1)[1] for path in paths} - {""}

    def exists(self, name: str) -> bool:
        """Return whether an object exists."""
        with self._errors():
            return bool(self.files.exists(self._path(name)))

    def open(self, name: str) -> BinaryIO:
        """Open an object; reading fetches ranges of it."""
        with self._errors(FileNotFoundError):
            return cast(BinaryIO, self.files.open(self._path(name), "rb", block_size=_READ_BYTES))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless it exists."""
        return self._create(lambda: self.files.pipe_file(self._path(name), data, mode="create"))

    def create_from(self, name: str, path: Path) -> bool:
        """Write an object from a local file unless it exists."""
        return self._create(lambda: self.files.put_file(str(path), self._path(name), mode="create"))

    def replace(self, name: str, data: bytes) -> None:
        """Write an object, replacing an existing one."""
        with self._errors():
            self.files.pipe_file(self._path(name), data)

    def _create(self, put: Callable[[], Any]) -> bool:
        with self._errors():
            for trial in range(_NUM_TRIES):
                try:
                    put()
                    return True
                except FileExistsError:
                    return False
                except OSError as error:
                    if _code(error) in _TAKEN:
                        return False
                    if _code(error) not in _CONFLICTS or trial == _NUM_TRIES - 1:
                        raise
                    time.sleep(_FIRST_PAUSE_S * 2**trial)
        raise AssertionError("the last trial returns or raises")

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextmanager
    def _errors(self, *expected: type[OSError]) -> Iterator[None]:
        """Turn all errors of the libraries into an OutputError; they have no base class in common."""
        try:
            yield
        except expected:
            raise
        except Exception as error:
            raise OutputError(
                f"{self.url} cannot be used: {type(error).__name__}: {error}. Existing parts are safe. Check "
                "the bucket and its permissions, then run the same command again."
            ) from error


def _code(error: OSError) -> str:
    """Return the error code of S3, which s3fs keeps in the cause only."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
