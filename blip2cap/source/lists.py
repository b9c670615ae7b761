"""Lists of paths, split as they arrive."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO


def split(stream: BinaryIO, separator: bytes) -> Iterator[bytes]:
    """Yield the parts of a stream as they arrive, bypassing Python's buffer.

    A thread that waits inside the buffer holds a lock that the interpreter needs when it exits.
    """
    rest = b""
    read: Callable[[int], bytes] = stream.read
    with contextlib.suppress(io.UnsupportedOperation):  # an in-memory stream has no descriptor
        read = functools.partial(os.read, stream.fileno())
    while chunk := read(65536):
        *whole, rest = (rest + chunk).split(separator)
        yield from whole
    if rest:
        yield rest
