"""Prompts by purpose, in TOML: those of the package and those of the user, asked for as `@name`.

A run's settings hold the text of a prompt, not its name: a library that changes does not change an output.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blip2cap.errors import UsageError

PACKAGED = Path(__file__).parent / "prompt_library.toml"
"""The library inside the package."""
_KEYS = {"purpose", "text"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryPrompt:
    """A prompt of a library."""

    name: str
    purpose: str
    text: str
    """The prompt; it may be a template."""
    path: Path
    """The file it comes from."""


def read_library(own: Path) -> dict[str, LibraryPrompt]:
    """Return the prompts of the package and those of the user's file, if there is one, by name.

    A prompt of the user replaces one of the same name. Raises UsageError for a file that cannot be read.
    """
    return _read(PACKAGED) | (_read(own) if own.is_file() else {})


def text_of(prompt: str | None, own: Path) -> str | None:
    """Return the text of `@name`, or any other prompt as it is. Raises UsageError for a name that no library has."""
    if prompt is None or not prompt.startswith("@"):
        return prompt
    return _find(prompt[1:], read_library(own)).text


def _find(name: str, library: Mapping[str, LibraryPrompt]) -> LibraryPrompt:
    if name in library:
        return library[name]
    close = difflib.get_close_matches(name.lower(), library, 3)
    meant = f" Did you mean {' or '.join(f'@{each}' for each in close)}?" if close else ""
    raise UsageError(f"--prompt @{name}: no such prompt.{meant} `blip2cap prompts` lists them.")


def _read(path: Path) -> dict[str, LibraryPrompt]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a library of prompts: {error}") from error
    prompts = {}
    for name, entry in content.items():
        if not isinstance(entry, dict) or entry.keys() - _KEYS or not isinstance(entry.get("text"), str):
            raise UsageError(f'{path}: [{name}]: expected text = "...", and purpose = "..." if you like.')
        purpose = str(entry.get("purpose", ""))
        prompts[name] = LibraryPrompt(name=name, purpose=purpose, text=entry["text"], path=path)
    return prompts
