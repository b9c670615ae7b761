"""Output to the terminal. File names and texts are data: no character in them may control the terminal."""

from __future__ import annotations

import errno
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from blip2cap.errors import OutputError

_CONTROL = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories: control, format (bidi overrides, zero width), surrogate, private, unassigned, line separators."""


def clean(text: str) -> str:
    """Replace every character that could control a terminal, or is invisible, by a backslash escape."""
    return "".join(
        character.encode("unicode_escape").decode("ascii") if unicodedata.category(character) in _CONTROL else character
        for character in text
    )


def say(text: str) -> None:
    """Print one line to stderr, if it is open. Data in `text` must have been through `clean`."""
    if sys.stderr is not None:
        with lost_terminal():
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


@contextmanager
def lost_terminal() -> Iterator[None]:
    """Ignore that the terminal was closed: nobody reads the messages of the run, but its rows are wanted."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Redirect a standard stream, with the text still in its buffer, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def write_out(text: str) -> None:
    """Write to stdout. Raises OutputError if it is closed or full, BrokenPipeError if its reader has closed it."""
    if sys.stdout is None:
        raise OutputError("standard output is closed.")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror}.") from error
