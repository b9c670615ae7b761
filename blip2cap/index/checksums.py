"""CRC-32 of the files of a segment: computed as they are written, compared when an update is asked to check.

Not at every opening: a million images are 16 GB, and a search reads a thousandth of them.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from blip2cap.outputs.files import Files, read_blocks, replacing_stream


class Summed(io.RawIOBase):
    """A stream for writing that knows the checksum of what was written."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._num_bytes = stream, 0
        self.checksum = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position of the next byte."""
        return self._num_bytes

    def write(self, data: Any) -> int:
        """Write all data; return its length."""
        self.checksum = zlib.crc32(data, self.checksum)
        self._num_bytes += memoryview(data).nbytes
        return self._stream.write(data)


@contextmanager
def replacing_summed(files: Files, path: Path) -> Iterator[Summed]:
    """Yield a stream that replaces a file as `replacing_stream` does."""
    with replacing_stream(files, path) as stream:
        yield Summed(stream)


def checksum_of(path: Path, files: Files) -> int:
    """Read a file and return its checksum. Raises OSError."""
    checksum = 0
    for block in read_blocks(files, path):
        checksum = zlib.crc32(block, checksum)
    return checksum
