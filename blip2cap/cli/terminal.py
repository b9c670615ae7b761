"""What reaches the terminal: file names and texts are data, so nothing in them may steer it."""

from __future__ import annotations

import errno
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from blip2cap.errors import OutputError

_STEERING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories: controls, formats (bidi overrides, zero width), surrogates, unassigned, line ends."""


def clean(text: str) -> str:
    """Write every character that could steer a terminal, or hide, as a backslash escape."""
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _STEERING
        else character
        for character in text
    )


def say(text: str) -> None:
    """Print one line to stderr, if there is one. `text` is ours; parts that are data have been through `clean`."""
    if sys.stderr is not None:
        with lost_terminal():
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


@contextmanager
def lost_terminal() -> Iterator[None]:
    """Let a run go on whose terminal was closed: nobody reads what it says, but its rows are wanted."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Send what is written to a standard stream from now on, and what it could not write, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def write_out(text: str) -> None:
    """Write to stdout. Raises OutputError if it is closed or full; BrokenPipeError if its reader has gone."""
    if sys.stdout is None:
        raise OutputError("standard output is closed.")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror}.") from error
