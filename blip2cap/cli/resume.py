"""The command that goes on where a run was stopped, to be pasted into a shell."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from blip2cap.cli.terminal import clean
from blip2cap.urls import shown


def this_command(*, without: str | None = None) -> str:
    """Return the command line of this process for a shell, less one flag, and less the secrets in URLs."""
    program = Path(sys.argv[0]).name
    start = ["python", "-m", "blip2cap"] if program == "__main__.py" else ["blip2cap"]
    arguments = sys.argv[1:]
    flags = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for index, argument in enumerate(arguments) if index >= flags or argument != without]
    return quote([*start, *map(shown, kept)])


def hides_secrets() -> bool:
    """Whether URLs in that command lack their user, password or query, as messages end in logs."""
    return any(shown(argument) != argument for argument in sys.argv[1:])


def quote(arguments: Sequence[str]) -> str:
    """Join arguments for a shell; those that would steer the terminal are written $'...', as bash and zsh read it."""
    return " ".join(shlex.quote(each) if clean(each) == each else _escaped(each) for each in arguments)


def _escaped(argument: str) -> str:
    return "$'" + "".join(_escape(character) for character in argument) + "'"


def _escape(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if clean(character) == character:
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
