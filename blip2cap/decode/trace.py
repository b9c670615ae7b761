"""A small file beside the output that lists the images being decoded, and survives a crash of the process.

A decoder in C that crashes ends the whole run. The next run finds in this file which images may be the cause.

Each image has a slot while it is decoded: the hash of its name, or zeros. A slot is written without waiting for the
disk: the kernel has the data even if the process dies. A power cut may lose it, but is not caused by a decoder.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blip2cap.errors import OutputError
from blip2cap.records import ImageRef

_DIGEST_BYTES = 32
_EMPTY = bytes(_DIGEST_BYTES)


def trace_path(out: Path) -> Path:
    """Return the path of the trace of an output."""
    return out.with_name(f"{out.name}.decoding")


class Trace:
    """The images that are being decoded, and those that were when an earlier run crashed; to be closed.

    The file is created for the first image. Raises OutputError if it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: int | None = None
        self._free: list[int] = []
        self._num_slots = 0
        self._closed = False
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise self._failed(error) from error
        digests = (content[at : at + _DIGEST_BYTES] for at in range(0, len(content), _DIGEST_BYTES))
        self._suspects = {digest for digest in digests if digest != _EMPTY and len(digest) == _DIGEST_BYTES}
        self.num_suspects = len(self._suspects)
        """Number of images that were being decoded when an earlier run crashed."""

    def suspects(self, ref: ImageRef) -> bool:
        """Return whether an earlier run crashed while it decoded this image."""
        return bool(self._suspects) and _digest(ref) in self._suspects

    @contextmanager
    def decoding(self, ref: ImageRef) -> Iterator[None]:
        """Record an image while it is decoded."""
        digest, slot = _digest(ref), self._take_slot()
        self._write(slot, digest)
        try:
            yield
        finally:
            self._write(slot, _EMPTY)
            self._free.append(slot)

    def forget(self) -> None:
        """Clear all suspects: they have been decoded in separate processes."""
        self._suspects.clear()

    def close(self) -> None:
        """Remove the file, unless suspects remain."""
        with self._lock:
            self._closed = True  # an abandoned thread must not create the file again
            if self._file is not None:
                os.close(self._file)
                self._file = None
        if not self._suspects:
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:
                raise self._failed(error) from error

    def _take_slot(self) -> int:
        """Return a free slot; a decoder that never returns keeps its own."""
        with self._lock:
            if self._file is None and not self._closed:
                self._open()
            if not self._free:
                self._num_slots += 1
                return self._num_slots - 1
            return self._free.pop()

    def _open(self) -> None:
        """Create the file with the known suspects, which must not be lost if this run crashes too."""
        known = sorted(self._suspects)
        self._num_slots = len(known)
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            os.pwrite(self._file, b"".join(known), 0)
        except OSError as error:
            raise self._failed(error) from error

    def _write(self, slot: int, digest: bytes) -> None:
        with self._lock:  # close() in between could give the descriptor to another file
            if self._file is None:
                return
            try:
                os.pwrite(self._file, digest, slot * _DIGEST_BYTES)
            except OSError as error:
                raise self._failed(error) from error

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path} cannot be read or written: {error.strerror}. Free disk space or repair the disk, "
            "or use another --out."
        )


def _digest(ref: ImageRef) -> bytes:
    return hashlib.sha256(os.fsencode(ref.name)).digest()
