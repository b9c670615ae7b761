"""Names and texts are data: no character in them may control a terminal, or hide or reorder what a page shows."""

from __future__ import annotations

import unicodedata

_CONTROL = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories: control, format (bidi overrides, zero width), surrogate, private, unassigned, line separators."""


def clean(text: str) -> str:
    """Replace every character that could control a terminal, or is invisible, by a backslash escape."""
    return "".join(
        character.encode("unicode_escape").decode("ascii") if unicodedata.category(character) in _CONTROL else character
        for character in text
    )
