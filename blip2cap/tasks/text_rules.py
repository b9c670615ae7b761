"""Rules for finished texts: find faults, trim to the last whole sentence, strip prefixes.

Pure functions. Covered: texts in any script, also those without spaces.
Not covered: whether a text is true; repetition inside one very long word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

FAULTS = ("repetition", "prompt_echo", "empty")
"""Faults of a text, the worst last."""

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U0001f000-\U0001faff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, kana, Han and emoji: written without spaces, so each character counts as a word."""
_PUNCTUATION = "\x00-/:-@\\[-`{-\xbf\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\s{_PUNCTUATION}{_UNSPACED}]+")
_LETTER = f"[^\\W{_UNSPACED}]"
_NOT_WITHIN_A_WORD = f"(?!(?<={_LETTER}){_LETTER})"

_LOOP = re.compile(
    r"""(?<!\S)(?:
        ((?:\S++\ ){2,4}) \1{2}  # few words three times; `no no` and `ha ha ha` are answers
        | ((?:\S++\ ){5,}) \2    # many words twice: no sentence has `a man in a hat a man in a hat`
    )""",
    re.VERBOSE,
)
"""A loop, in words that each end with a space."""
_MAX_REPEATED, _MIN_JUDGED = 0.5, 12
"""Largest share of repeated three-word sequences in texts of at least this number of words. `A black and white photo of
a black and white cat` has 0.22, a list of four that begin alike (`a cat on a bed, a cat on ...`) 0.33."""
_MIN_ECHO = 3
"""Fewer words may repeat the question: `a cat?`, `a cat`."""

_SENTENCE_END = re.compile(
    r"""[.!?]+["'”’»)\]]*(?=\s|$)   # followed by a space: not the dot in 3.5
    |   [。！？．｡]+["'”’»)\]」』）］]*""",
    re.VERBOSE,
)
_NO_SENTENCE = re.compile(r"(?<!\w)(?:(?:\w\.)*\w|\d\d|mr|mrs|ms|dr|st|vs)$", re.IGNORECASE)
"""Text before a dot that ends no sentence: initials, the number of a list item, an abbreviation."""


def find_fault(text: str, prompt: str, question: str | None = None, *, cut: bool = False) -> str:
    """Return the fault of a text that was generated from `prompt`: one of FAULTS, or "".

    `question` is the part of the prompt that a person asked; `cut` says that the length limit ended the text.
    """
    if not text.strip():
        return "empty"
    words = _words(text)
    for source in (prompt, question or ""):
        given = _words(source)
        if min(len(words), len(given)) < _MIN_ECHO:
            continue
        if question is not None and words[: len(given)] == given:  # a caption may continue its prompt
            return "prompt_echo"
        num_times, num_more = divmod(len(words), len(given))
        if words == given * num_times + given[:num_more] and (cut or not num_more):
            return "prompt_echo"
    too_many = len(words) >= _MIN_JUDGED and _repeated_share(words) > _MAX_REPEATED
    return "repetition" if too_many or _LOOP.search("".join(f"{word} " for word in words)) else ""


def badness(text: str, flag: str) -> tuple[int, float]:
    """Return a sort key: the best text has the smallest; all texts without a fault have the same."""
    return (1 + FAULTS.index(flag), _repeated_share(_words(text))) if flag in FAULTS else (0, 0.0)


def trim_to_sentence(text: str) -> str:
    """Remove what follows the last whole sentence and its closing quotes; a text without one is returned unchanged."""
    for match in reversed(list(_SENTENCE_END.finditer(text))):
        before = text[: match.start()]
        if _WORD.search(before) and not (match.group().startswith(".") and _NO_SENTENCE.search(before)):
            return text[: match.end()]
    return text


def strip_prefixes(text: str, prefixes: Sequence[str]) -> str:
    """Remove prefixes, and the spaces after them, from the start until none is left; the longest is tried first.

    Case is ignored; a prefix must not end within a word. At least one word is kept.
    """
    if not prefixes:
        return text
    longest_first = "|".join(map(re.escape, sorted(prefixes, key=len, reverse=True)))
    rest = rf"(?=.*?(?:{_WORD.pattern}))"
    start = rf"\A(?>(?i:{longest_first}){_NOT_WITHIN_A_WORD}\s*+{rest})++"  # atomic: takes linear time
    return re.sub(start, "", text, flags=re.DOTALL)


def _words(text: str) -> list[str]:
    """Split at spaces and punctuation, for comparison; if a text has only punctuation, every character is a word."""
    return _WORD.findall(text.casefold()) or list("".join(text.split()))


def _repeated_share(words: Sequence[str]) -> float:
    """Return the share of three-word sequences that occurred before."""
    sequences = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0
