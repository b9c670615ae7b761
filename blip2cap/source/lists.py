"""Lists of paths, split as they arrive."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO


def split(stream: BinaryIO, separator: bytes) -> Iterator[bytes]:
    """Split a stream as it arrives, past Python's buffer.

    A thread that waits inside the buffer holds a lock that the interpreter wants when it ends.
    """
    rest = b""
    read: Callable[[int], bytes] = stream.read
    with contextlib.suppress(io.UnsupportedOperation):  # a stream in memory has no descriptor
        read = functools.partial(os.read, stream.fileno())
    while chunk := read(65536):
        *whole, rest = (rest + chunk).split(separator)
        yield from whole
    if rest:
        yield rest
