"""Brace expansion: `shards/{000..099}.tar` and `{a,b}.tar` -> the names that they stand for."""

from __future__ import annotations

import itertools
import re

from blip2cap.errors import InputError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_MAX_NAMES = 1_000_000


def expand(given: str) -> list[str]:
    """Return all names in order, the last braces varying fastest; numbers keep their leading zeros.

    Other braces remain as they are: they may be part of a name. Raises InputError for more than a million names.
    """
    parts: list[list[str]] = []
    end, count = 0, 1
    for found in _BRACES.finditer(given):
        first, last, words = found.groups()
        size = words.count(",") + 1 if words is not None else abs(int(last) - int(first)) + 1
        count *= size
        if count > _MAX_NAMES:
            raise InputError(f"{given}: stands for more than {_MAX_NAMES:,} names. Give fewer, or a folder.")
        parts += [[given[end : found.start()]], words.split(",") if words is not None else _numbers(first, last)]
        end = found.end()
    return ["".join(names) for names in itertools.product(*parts, [given[end:]])]


def _numbers(first: str, last: str) -> list[str]:
    padded = any(word[0] == "0" and len(word) > 1 for word in (first, last))
    width = max(len(first), len(last)) if padded else 0
    start, stop = int(first), int(last)
    step = 1 if start <= stop else -1
    return [f"{number:0{width}}" for number in range(start, stop + step, step)]
