"""A small file beside the output that lists the images being decoded, and survives a crash of the process.

A decoder in C that crashes ends the whole run. The next run finds in this file which images may be the cause.

Each image has a slot while it is decoded: the hash of its name, or zeros. A slot is written without waiting for the
disk: the kernel has the data even if the process dies. A power cut may lose it, but is not caused by a decoder.

Worker processes write into the file of the process that started them, each into slots of its own (`slots_for`).
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from blip2cap.errors import OutputError
from blip2cap.records import ImageRef

_DIGEST_BYTES = 32
_EMPTY = bytes(_DIGEST_BYTES)
SLOTS_OF_PROCESS = 64
"""Most images that one process records at once: more than it has threads, even if some of them hang."""


def trace_path(out: Path) -> Path:
    """Return the path of the trace of an output."""
    return out.with_name(f"{out.name}.decoding")


class Slots:
    """SLOTS_OF_PROCESS slots of a file, from the slot `first` on; thread-safe, to be closed.

    Raises OutputError if the file cannot be opened or written.
    """

    def __init__(self, path: Path, first: int, *, start: bytes | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: int | None
        self._free: list[int] = []
        self._next, self._end = first, first + SLOTS_OF_PROCESS
        try:
            if start is None:
                self._file = _open_existing(path)
            else:  # create it
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
                os.pwrite(self._file, start, 0)
        except OSError as error:
            raise _failed(path, error) from error

    @contextmanager
    def recording(self, ref: ImageRef) -> Iterator[None]:
        """Record an image while it is decoded; without a free slot, it is not recorded."""
        slot = self._take()
        self._write(slot, _digest(ref))
        try:
            yield
        finally:
            self._write(slot, _EMPTY)
            if slot is not None:
                self._free.append(slot)

    def _take(self) -> int | None:
        """Return a free slot; a decoder that never returns keeps its own."""
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._next == self._end:
                return None
            self._next += 1
            return self._next - 1

    def _write(self, slot: int | None, digest: bytes) -> None:
        with self._lock:  # close() in between could give the descriptor to another file
            if self._file is None or slot is None:
                return
            try:
                os.pwrite(self._file, digest, slot * _DIGEST_BYTES)
            except OSError as error:
                raise _failed(self.path, error) from error

    def close(self) -> None:
        """Close the file; nothing is recorded any more."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None


class Trace:
    """The images that are being decoded, and those that were when an earlier run crashed; to be closed.

    The file is created for the first image. Raises OutputError if it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._slots: Slots | None = None
        self._closed = False
        self._shared: dict[int, int] = {}
        """First slot of each process that records here too."""
        self._suspects = _suspects_in(path)
        self.num_suspects = len(self._suspects)
        """Number of images that were being decoded when an earlier run crashed."""

    def suspects(self, ref: ImageRef) -> bool:
        """Return whether an earlier run, or a worker process, crashed while it decoded this image."""
        return bool(self._suspects) and _digest(ref) in self._suspects

    def decoding(self, ref: ImageRef) -> AbstractContextManager[None]:
        """Record an image while it is decoded."""
        slots = self._open()
        return nullcontext() if slots is None else slots.recording(ref)

    def slots_for(self, ref: ImageRef, process: int) -> tuple[str, int]:
        """Return the file and the first slot for images that another process decodes; each number has its own."""
        self._open()
        with self._lock:
            if process not in self._shared:
                self._shared[process] = self._first_free
                self._first_free += SLOTS_OF_PROCESS
            return str(self.path), self._shared[process]

    def crashed(self, process: int) -> bool:
        """Suspect the images that a process was decoding when it crashed; return True if there were any.

        Its slots are not used again.
        """
        first = self._shared.pop(process, None)
        found = set() if first is None else _suspects_in(self.path, first, SLOTS_OF_PROCESS)
        self._suspects |= found
        return bool(found)

    def forget(self) -> None:
        """Clear all suspects: they have been decoded in separate processes."""
        self._suspects.clear()

    def close(self) -> None:
        """Remove the file, unless suspects remain."""
        with self._lock:
            self._closed = True  # an abandoned thread must not create the file again
            if self._slots is not None:
                self._slots.close()
        if not self._suspects:
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:
                raise _failed(self.path, error) from error

    def _open(self) -> Slots | None:
        """Create the file with the known suspects, which must not be lost if this run crashes too."""
        with self._lock:
            if self._slots is None and not self._closed:
                known = sorted(self._suspects)
                self._first_free = len(known) + SLOTS_OF_PROCESS
                self._slots = Slots(self.path, len(known), start=b"".join(known))
            return self._slots


def _open_existing(path: Path) -> int | None:
    """Open the file of another process; None if it has removed the file, as its output is complete."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _suspects_in(path: Path, first: int = 0, most: int | None = None) -> set[bytes]:
    """Return the digests in the slots of a file. Raises OutputError."""
    try:
        with open(path, "rb") as file:
            file.seek(first * _DIGEST_BYTES)
            content = file.read(-1 if most is None else most * _DIGEST_BYTES)
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise _failed(path, error) from error
    digests = (content[at : at + _DIGEST_BYTES] for at in range(0, len(content), _DIGEST_BYTES))
    return {digest for digest in digests if digest != _EMPTY and len(digest) == _DIGEST_BYTES}


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be read or written: {error.strerror}. Free disk space or repair the disk, or use another --out."
    )


def _digest(ref: ImageRef) -> bytes:
    return hashlib.sha256(os.fsencode(ref.name)).digest()
