"""Captions -> words, as Stanford's PTBTokenizer (CoreNLP 3.4.1) splits them for the reference evaluator.

Covered: one text by itself. Not covered: there, a capital at the start of the next line may decide whether "b." at the
end of a line is an abbreviation, and characters that end a line shift all captions that follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from blip2cap.evaluate.ptb_rules import Rules, make_rules
from blip2cap.evaluate.ptb_words import (
    ABBREVIATIONS,
    CAPITALISED_ABBREVIATIONS,
    NOT_UPPER_ABBREVIATIONS,
    NUMBER_ABBREVIATIONS,
    SPLIT_WORDS,
)

_PUNCTUATION = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", ""))
"""Left out, as the reference evaluator does. Brackets stay: it compares "-LRB-" with words in small letters."""
_LINE_ENDS = re.compile(r"[\n\r\x0b\x0c\x85\u2028\u2029]")
_SPACES_MATTER = re.compile(r"[<\d\t\xa0]|\. ")
_WORDS_AND_SPACES = re.compile(
    rf"[<\t\xa0]|\d\)? +\d|(?<![A-Za-z0-9])[A-Za-z]\. |(?i:{'|'.join(NUMBER_ABBREVIATIONS)})\. +\d"
)
"""Texts that may have a word with a space in it, or one that depends on what follows a space. `_SPACES_MATTER` is the
same with less care, and finds most texts that have none in a tenth of the time."""
_PLAIN = re.compile(r"[A-Za-z]+(?=[,;:!?]?(?: |$))|[A-Za-z]{2,}(?=\.(?: |$))")
"""A word that no rule but the simplest can match, unless it is one of these."""
_NOT_PLAIN = frozenset(first + second for first, second in SPLIT_WORDS).union(
    ABBREVIATIONS, CAPITALISED_ABBREVIATIONS, NOT_UPPER_ABBREVIATIONS, NUMBER_ABBREVIATIONS
)
_CACHE_SIZE = 1 << 16
"""Number of different parts of texts; captions of thousands of images have fewer."""


def tokenize(texts: Iterable[str]) -> list[str]:
    """Return the words of each text in small letters, with a space between two, and without punctuation."""
    return [" ".join(_words(_LINE_ENDS.sub(" ", text))) for text in texts]


def _words(text: str) -> Iterable[str]:
    if _SPACES_MATTER.search(text) and _WORDS_AND_SPACES.search(text):
        return _scan(text)
    return [word for part in text.split(" ") for word in _words_of_part(part)]


@lru_cache(_CACHE_SIZE)
def _words_of_part(text: str) -> tuple[str, ...]:
    """Return the words of a part of a text between two spaces."""
    return tuple(_scan(text))


def _scan(text: str) -> Iterator[str]:
    """Yield the words of a text, the longest at each place; what is no part of a word is left out."""
    rules = make_rules(text.isascii())
    start = 0
    while start < len(text):
        if text[start] == " ":
            start += 1
            continue
        plain = _PLAIN.match(text, start)
        written = plain[0].lower() if plain else ""
        if plain and written not in _NOT_PLAIN:
            end = plain.end()
        else:
            end, written = _longest(text, start, rules)
        if written not in _PUNCTUATION:
            yield written
        start = end


def _longest(text: str, start: int, rules: Rules) -> tuple[int, str]:
    """Return the end of the word that begins here, and its form; "" for a character that is no part of a word."""
    longest, end, written = start, start + 1, ""
    is_alphanumeric = text[start].isalpha() or text[start].isdecimal()
    for rule in rules.alphanumeric if is_alphanumeric else rules.other:
        match = rule.pattern.match(text, start)
        if match and match.end() > longest:
            longest, end = match.end(), match.end(match.lastindex or 0)
            written = rule.write(text[start:end])
    return end, written
