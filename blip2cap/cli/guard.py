"""Errors of the command line: one line on stderr, and the exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from blip2cap.cli.signals import Stopped
from blip2cap.cli.terminal import clean, discard, say
from blip2cap.errors import Blip2CapError, OutputError

_BROKEN_PIPE = 141
"""Exit code that a shell reports for a process that SIGPIPE ended."""
_BAD_ARGUMENTS: Any = typer.BadParameter.__base__
"""Error of typer for arguments that it cannot parse; older versions give it no public name."""


@contextmanager
def handle_errors() -> Iterator[None]:
    """Print our errors as one line and exit with their code. Any other exception is a bug and shows its traceback.

    Errors of typer repeat arguments, which are data: their messages are cleaned.
    """
    try:
        yield
    except _BAD_ARGUMENTS as error:
        error.message = clean(error.message)
        raise
    except Blip2CapError as error:
        say(f"blip2cap: {clean(error.message)}")
        raise typer.Exit(error.exit_code) from error
    except BrokenPipeError:
        # The reader of stdout or stderr has closed it. Python flushes both at exit, and would print an error again.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                discard(stream)
        raise typer.Exit(_BROKEN_PIPE) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        if sys.stdout is not None:
            discard(sys.stdout)  # typer may have been printing the help; as above
        what = f"{clean(str(error.filename))}: " if error.filename else ""
        say(f"blip2cap: {what}cannot be written: {error.strerror}. Free some space, or write to another disk.")
        raise typer.Exit(OutputError.exit_code) from error
    except Stopped as stopped:
        raise typer.Exit(stopped.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def fill_standard_descriptors() -> None:
    """Open the null device for closed standard streams: else the output file would get their number and their text."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
