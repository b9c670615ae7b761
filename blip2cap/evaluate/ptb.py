"""Captions -> words, as Stanford's PTBTokenizer splits them for the reference evaluator."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TOKEN = re.compile(r"n't\b|'(?:s|m|d|ll|re|ve)\b|\w(?:[\w-]*\w)?(?=n't\b)|\w(?:[\w.,:/-]*\w)?|\S")
_PUNCTUATION = {"''", "'", '"', "`", ".", "?", "!", ",", ":", "-", ";"}


def tokenize(texts: Sequence[str]) -> list[str]:
    """Return the words of each text in lower case, with one space between them and without punctuation."""
    return [" ".join(token for token in _TOKEN.findall(text.lower()) if token not in _PUNCTUATION) for text in texts]
