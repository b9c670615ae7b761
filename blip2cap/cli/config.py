"""Options from the TOML file of --config; flags and variables override them, they override the defaults.

model = "tiny"            # for every command, all of which must have the option

[caption]                 # for one command
prompt = "a photo of"
num-beams = 3
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from blip2cap.errors import UsageError


def load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options in the file the defaults of the command that is being parsed.

    Raises typer.BadParameter for a file that cannot be read, or an option that the command does not have.
    """
    if path is None:
        return None
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not TOML: {error}.") from error
    commands = getattr(context.find_root().command, "commands", {str(context.info_name): None})
    options = {key: value for key, value in content.items() if key not in commands}
    table = content.get(str(context.info_name), {})
    if not isinstance(table, dict):
        raise typer.BadParameter(f"{path}: expected [{context.info_name}] to be a table.")
    set_defaults(context, path, options | table)
    return path


def set_defaults(context: typer.Context, path: Path, options: Mapping[str, Any]) -> None:
    """Make options, by their long flags, the defaults of the command that is being parsed.

    Raises typer.BadParameter for one that the command does not have; it names the file.
    """
    known = _names(context)
    defaults: dict[str, Any] = {}
    for key, value in options.items():
        name = key.replace("_", "-")
        if name not in known:
            raise typer.BadParameter(
                f"{path}: unknown option {key}. {context.info_name} has: {', '.join(sorted(known))}."
            )
        parameter, takes_several = known[name]
        defaults[parameter] = [value] if takes_several and not isinstance(value, list) else value
    context.default_map = {**(context.default_map or {}), **defaults}


def _names(context: typer.Context) -> dict[str, tuple[str, bool]]:
    """Return the parameter of each option, by its long name, and True for those that take several values."""
    names = {}
    for parameter in context.command.params:
        long = next((flag[2:] for flag in parameter.opts if flag.startswith("--")), parameter.name)
        if parameter.name and long and long not in ("config", "help"):
            names[long] = (parameter.name, getattr(parameter, "multiple", False) or parameter.nargs == -1)
    return names


def read_lines(path: Path, *, flag: str, noun: str) -> tuple[str, ...]:
    """Read a file with one `noun` per line, without empty lines. Raises UsageError, which names the flag."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{flag} {path}: not valid UTF-8.") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise UsageError(f"{flag} {path}: contains no {noun}. Expected one per line.")
    return found
