"""Tar archives (WebDataset) -> ImageRef, in the order of the members; nothing is ever extracted to disk.

Of a local, uncompressed tar only the headers are read: decode threads read the members later, concurrently. A
compressed or remote one is streamed once, and the bytes of a member travel with its reference.

Covered: gzip, bzip2, xz and zstd, recognised by content; long and unusual names; truncated and damaged archives.
Not covered: sparse members; archives in archives.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from blip2cap.errors import InputError
from blip2cap.records import Held, ImageRef

_BLOCK = 1 << 20
_MAX_HEADER = 1 << 20
"""Maximum length of the headers of one member in bytes, with long names and extended headers."""
_END = bytes(tarfile.BLOCKSIZE)
"""The block of zeros at the end of an archive; without it, the archive is truncated."""


class _DamagedError(Exception):
    """An archive that cannot be read any further."""


class TarArchive:
    """One archive. The constructor raises InputError for a local file that is no tar."""

    def __init__(
        self, path: str, suffixes: frozenset[str], max_bytes: int, open_remote: Callable[[], Any] | None = None
    ) -> None:
        self.path, self.suffixes, self.max_bytes = path, suffixes, max_bytes
        self.open_remote = open_remote
        self.streamed = True
        """True if its members can only be read in order, while it is listed."""
        if open_remote is None:
            try:
                with closing(self._open()) as tape:
                    _headers(tape, path)
                    self.streamed = tape.compressed
            except _DamagedError as error:
                raise InputError(
                    f"{path}: cannot be read as a tar archive: {error}. Expected one as it is, or compressed with "
                    "gzip, bzip2, xz or zstd."
                ) from error

    def _open(self) -> _Tape:
        try:
            return _Tape(open(self.path, "rb") if self.open_remote is None else self.open_remote())
        except _DamagedError:
            raise
        except Exception as error:  # remote back ends have their own exceptions
            raise _DamagedError(_message(error)) from error

    def refs(self, skipped: Counter[str], damaged: list[str]) -> Iterator[ImageRef]:
        """Yield the images; damage ends the archive, is counted as `unreadable_archive` and described in `damaged`."""
        try:
            with closing(self._open()) as tape:
                for member in _members(tape, self.path):
                    if not member.isdir() and self._is_image(member.name, skipped):
                        yield self._ref(member, tape)
        except _DamagedError as error:
            skipped["unreadable_archive"] += 1
            damaged.append(f"{self.path}: not read to its end: {error}")

    def _is_image(self, name: str, skipped: Counter[str]) -> bool:
        if any(part.startswith(".") and part not in (".", "..") for part in name.split("/")):
            skipped["hidden"] += 1
        elif os.path.splitext(name)[1].lower() not in self.suffixes:
            skipped["other_suffix"] += 1
        else:
            return True
        return False

    def _ref(self, member: tarfile.TarInfo, tape: _Tape) -> ImageRef:
        name = f"{self.path}#{member.name}".replace("\0", "\\x00")  # NUL separates the parts of a key
        size = member.size
        if not member.isreg():
            error, detail = "not_regular", "a link or a device in its archive"
        elif member.issparse():
            error, detail = "unsupported", "a sparse file in its archive"
        elif size > self.max_bytes:
            error, detail = "too_large", f"{size:,} bytes is more than {self.max_bytes:,}"
        elif not self.streamed:
            return ImageRef(path=self.path, name=name, offset=member.offset_data, num_bytes=size)
        else:
            data = tape.read_up_to(size)
            if len(data) == size:
                return ImageRef(path=self.path, name=name, num_bytes=size, load=Held(data), num_held=size)
            error, detail = "truncated", "the archive ends before it does"
        return ImageRef(path=self.path, name=name, error=error, detail=detail)


def _headers(tape: _Tape, name: str) -> tarfile.TarFile:
    """Read the first header."""
    try:
        return tarfile.TarFile(name=os.fspath(name), fileobj=tape, encoding="utf-8")  # type: ignore[arg-type]
    except (tarfile.TarError, RecursionError, ValueError) as error:
        raise _DamagedError(_message(error)) from error


def _members(tape: _Tape, name: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive.

    `tarfile` takes an invalid header for the end, keeps all members in memory, trusts the length of a name in a header,
    and loops for ever on a negative size. Here damage raises _DamagedError, and memory is bounded.
    """
    tar = _headers(tape, name)
    last = -1
    while True:
        try:
            tape.allowance = _MAX_HEADER
            member = tar.next()
        except (tarfile.TarError, RecursionError, ValueError) as error:
            raise _DamagedError(_message(error)) from error
        tar.members.clear()  # type: ignore[attr-defined]
        tar.pax_headers = {}
        if member is None:
            if tape.last != _END:
                raise _DamagedError("it has no end mark, or a damaged header")
            if tape.compressed:
                tape.read_up_to(_BLOCK)  # up to the checksum, which follows the padding
            return
        if member.size < 0 or member.offset <= last:
            raise _DamagedError("a header claims a size below zero")
        last = member.offset
        yield member


class _Tape:
    """A decompressed archive that `tarfile` reads headers from: forwards only, with a limit per member.

    Converts all exceptions of file, decompressor and network to _DamagedError.
    """

    def __init__(self, raw: Any) -> None:
        self.raw = self.stream = raw
        self.position = 0
        self.allowance = _MAX_HEADER
        self.last = b""
        """The last header block that was read."""
        try:
            magic = raw.read(6)
            raw.seek(0)
            self.stream = _decompressed(raw, magic)
        except Exception as error:
            raw.close()
            raise _DamagedError(_message(error)) from error
        self.compressed = self.stream is not raw

    def read(self, size: int) -> bytes:
        """Read a piece of a header."""
        self.allowance -= size
        if size < 0 or self.allowance < 0:
            raise _DamagedError(f"a header of more than {_MAX_HEADER:,} bytes")
        self.last = self.read_up_to(size)
        return self.last

    def read_up_to(self, size: int) -> bytes:
        """Read `size` bytes, or fewer at the end."""
        blocks = []
        while size and (block := self._read(min(size, _BLOCK))):
            blocks.append(block)
            size -= len(block)
        return b"".join(blocks)

    def _read(self, size: int) -> bytes:
        try:
            block: bytes = self.stream.read(size)
        except Exception as error:  # decompressors and back ends have their own exceptions
            raise _DamagedError(_message(error)) from error
        self.position += len(block)
        return block

    def tell(self) -> int:
        """Return the position in the archive."""
        return self.position

    def seek(self, position: int) -> None:
        """Go forward, by reading if the archive is compressed."""
        if position < self.position:
            raise _DamagedError("a header points back")
        if not self.compressed:
            try:
                self.stream.seek(position)
            except Exception as error:
                raise _DamagedError(_message(error)) from error
            self.position = position
        while self.position < position:
            if not self._read(min(position - self.position, _BLOCK)):
                raise _DamagedError("it ends in the middle")

    def close(self) -> None:
        """Close the file."""
        if self.compressed:
            self.stream.close()
        self.raw.close()


def _decompressed(raw: Any, magic: bytes) -> Any:
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    if magic == b"\xfd7zXZ\0":
        return lzma.LZMAFile(raw)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow

        return pyarrow.CompressedInputStream(raw, "zstd")
    return raw


def _message(error: Exception) -> str:
    """Return the message of an exception."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__
