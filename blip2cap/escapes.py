"""Names and texts are data: no character in them may control a terminal, or hide or reorder what a page shows."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

_CONTROL = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories: control, format (bidi overrides, zero width), surrogate, private, unassigned, line separators."""


def clean(text: str) -> str:
    """Replace every character that could control a terminal, or is invisible, by a backslash escape."""
    return "".join(
        character.encode("unicode_escape").decode("ascii") if unicodedata.category(character) in _CONTROL else character
        for character in text
    )


def json_line(value: Any) -> str:
    """Return a value as one line of JSON in which every such character is an escape; other text is as it is."""
    line = json.dumps(value, ensure_ascii=False)
    if clean(line) != line:  # only inside its strings, where an escape means the same
        line = "".join(each if clean(each) == each else json.dumps(each)[1:-1] for each in line)
    return f"{line}\n"
