"""The command that resumes a stopped run, ready to be pasted into a shell."""

from __future__ import annotations

import os
import shlex
import string
import sys
from collections.abc import Iterable
from pathlib import Path

from blip2cap.cli.terminal import clean
from blip2cap.urls import shown

_PLAIN = {ord(character) for character in string.printable[:95]} - set(b"\\'")
"""Bytes that mean themselves inside $'...'."""


def this_command(*, without: str | None = None) -> str:
    """Return the command line of this process for a shell, without one flag and without the secrets in URLs."""
    start = ["python", "-m", "blip2cap"] if Path(sys.argv[0]).name == "__main__.py" else ["blip2cap"]
    arguments = sys.argv[1:]
    num_options = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:num_options] if argument != without]
    return quote([*start, *map(shown, options + arguments[num_options:])])


def hides_secrets() -> bool:
    """Return True if that command leaves out users, passwords or queries of URLs, because messages end up in logs."""
    return any(shown(argument) != argument for argument in sys.argv[1:])


def quote(arguments: Iterable[str]) -> str:
    """Join arguments for a shell; those that could control the terminal as $'...', which bash and zsh understand."""
    return " ".join(shlex.quote(each) if clean(each) == each else _escape(each) for each in arguments)


def _escape(argument: str) -> str:
    text = "".join(chr(byte) if byte in _PLAIN else f"\\x{byte:02x}" for byte in os.fsencode(argument))
    return f"$'{text}'"
