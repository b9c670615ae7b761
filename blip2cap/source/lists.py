"""Lists of paths, split as they arrive."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from blip2cap.errors import InputError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def paths_in(stream: BinaryIO, name: str, *, null_separated: bool) -> Iterator[str]:
    """Yield the paths in the list `name`, as they arrive.

    Raises InputError if its beginning shows that it is not a list of that kind.
    """
    separator = b"\0" if null_separated else b"\n"
    for number, raw in enumerate(_split(stream, separator, functools.partial(_check, name, separator))):
        if not null_separated:
            raw = raw.removesuffix(b"\r")
            if number == 0:
                raw = raw.removeprefix(_BYTE_ORDER_MARK)  # Windows editors write one
        if raw:
            yield os.fsdecode(raw)


def _check(name: str, separator: bytes, beginning: bytes) -> None:
    """Raise InputError for the beginning of a list that is in UTF-16, or separated by NUL where lines are expected."""
    if beginning.startswith(_UTF_16):
        raise InputError(f"{name}: is UTF-16. Expected UTF-8: save it as UTF-8, without a byte order mark.")
    if separator == b"\n" and b"\0" in beginning.partition(b"\n")[0]:
        raise InputError(f"{name}: the first path holds NUL bytes; expected one path per line. Did you mean -0?")


def _split(stream: BinaryIO, separator: bytes, check: Callable[[bytes], None]) -> Iterator[bytes]:
    """Yield the parts of a stream as they arrive, bypassing Python's buffer; `check` sees all bytes of the first.

    A thread that waits inside the buffer holds a lock that the interpreter needs when it exits.
    """
    rest, is_first = b"", True
    read: Callable[[int], bytes] = stream.read
    with contextlib.suppress(io.UnsupportedOperation):  # an in-memory stream has no descriptor
        read = functools.partial(os.read, stream.fileno())
    while chunk := read(65536):
        if is_first:
            check(rest + chunk)
        *whole, rest = (rest + chunk).split(separator)
        is_first = is_first and not whole
        yield from whole
    if rest:
        yield rest
