"""Errors of a command: one line on stderr, and the exit code."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from blip2cap.cli.signals import Stopped
from blip2cap.cli.terminal import clean, discard, say
from blip2cap.errors import Blip2CapError

_BROKEN_PIPE = 141
"""Exit code that a shell reports for a process that SIGPIPE ended."""


def handle_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print our errors as one line and exit with their code. Any other exception is a bug and shows its traceback."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        _fill_standard_descriptors()
        try:
            command(*args, **kwargs)
        except Blip2CapError as error:
            say(f"blip2cap: {clean(str(error))}")
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError:
            # The reader of stdout or stderr has closed it. Python flushes both at exit, and would print an error again.
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    discard(stream)
            raise typer.Exit(_BROKEN_PIPE) from None
        except Stopped as stopped:
            raise typer.Exit(stopped.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return guarded


def _fill_standard_descriptors() -> None:
    """Open the null device for closed standard streams: else the output file would get their number and their text."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
