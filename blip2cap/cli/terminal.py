"""What reaches the terminal: file names and texts are data, so nothing in them may steer it."""

from __future__ import annotations

import sys
import unicodedata

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
    """Print one line to stderr. `text` is ours; parts of it that are data have been through `clean`."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
