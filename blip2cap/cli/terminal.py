"""Output to the terminal. File names and texts are data: no character in them may control the terminal."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from blip2cap.errors import OutputError
from blip2cap.escapes import clean as clean

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str) -> None:
    """Print one line to stderr, if it is open. Data in `text` must have been through `clean`."""
    if sys.stderr is not None:
        with lost_terminal():
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


@contextmanager
def lost_terminal() -> Iterator[None]:
    """Ignore that the terminal was closed, or the disk of a log is full: the rows of the run are still wanted."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ENOSPC):
            raise
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Redirect a standard stream, with the text still in its buffer, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def encodable(text: str) -> str:
    """Replace every character that stdout cannot encode by a backslash escape."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def cell(text: str) -> str:
    """Return a text, which may be data, as a cell of a table on stdout."""
    return encodable(clean(text))


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@contextmanager
def page() -> Iterator[Console]:
    """Return a console of rich; what it prints is written to stdout at the end of the block.

    Frames are in ASCII where stdout is not Unicode.
    """
    from rich.console import Console

    class Page(io.StringIO):
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"

    file = Page()  # rich itself would end the process with code 1 when `| head` closes the pipe
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    yield Console(file=file, force_terminal=on_terminal, markup=False, highlight=False, emoji=False)
    write_out("".join(line.rstrip() + "\n" for line in file.getvalue().splitlines()))


def write_out(text: str) -> None:
    """Write to stdout. Raises OutputError if it is closed or full, BrokenPipeError if its reader has closed it."""
    with _stdout() as stdout:
        stdout.write(encodable(text))
        stdout.flush()


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout, for programs. Raises like `write_out`."""
    with _stdout() as stdout:
        view = memoryview(data)
        while view:  # with PYTHONUNBUFFERED a write may take a part
            view = view[stdout.buffer.write(view) :]
        stdout.buffer.flush()


@contextmanager
def _stdout() -> Iterator[TextIO]:
    """Yield stdout. Raises OutputError if it is closed or full."""
    if sys.stdout is None:
        raise OutputError("standard output is closed.")
    try:
        yield sys.stdout
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)  # Python would try again at exit
        raise OutputError(f"standard output cannot be written: {error.strerror}.") from error
