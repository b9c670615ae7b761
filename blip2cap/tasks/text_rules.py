"""Rules for finished texts: what is wrong with one, where its last sentence ends, what it need not begin with.

Pure functions. Covered: texts in any script, those without spaces too. Not covered: whether a text is true, or one very
long word that repeats itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

FAULTS = ("repetition", "prompt_echo", "empty")
"""What can be wrong with a text, from bad to worse."""

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U0001f000-\U0001faff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, kana, Han and emoji: written without spaces, so each character counts as a word."""
_PUNCTUATION = "\x00-/:-@\\[-`{-\xbf\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\s{_PUNCTUATION}{_UNSPACED}]+")
_SPACED = re.compile(f"[^\\W{_UNSPACED}]")

_LEAST_TIMES, _LEAST_WORDS = 3, 6
"""A loop says the same at least so often in a row, in at least so many words: `no no` and `ha ha ha` are answers."""
_LONG = 5
"""So many words in a row are a loop when they come twice: no sentence says `a man in a hat a man in a hat`."""
_MOST_REPEATED, _LEAST_JUDGED = 0.5, 12
"""Share of three-word sequences said before that makes a loop, in texts of at least so many words. `A black and white
photo of a black and white cat` has 0.22, a list of four that begin alike (`a cat on a bed, a cat on ...`) 0.33."""
_LEAST_DOUBLES = 4
"""Words of any loop that were said before it ends, at the least: `a cat a cat a cat`. Most captions have fewer."""
_LEAST_ECHO = 3
"""Fewer words may well be said again: `a cat?`, `a cat`."""

_SENTENCE_END = re.compile(
    r"""[.!?]+["'”’»)\]]*(?=\s|$)   # followed by a space: not the point in 3.5
    |   [。！？．｡]+["'”’»)\]」』）］]*""",
    re.VERBOSE,
)
_NO_SENTENCE = re.compile(r"(?<!\w)(?:(?:\w\.)*\w|\d\d|mr|mrs|ms|dr|st|vs)$", re.IGNORECASE)
"""Before a point that ends no sentence: initials, the number of a list, an abbreviation."""


def find_fault(text: str, prompt: str, question: str | None = None, *, cut: bool = False) -> str:
    """Return what is wrong with a text about `prompt`: one of FAULTS, or "".

    `question` is the part of the prompt that a person asked; `cut` says that the text did not come to its end.
    """
    if not text.strip():
        return "empty"
    words = _words(text)
    given = (prompt,) if question is None else (prompt, question)
    if any(_is_echo(words, _words(said), cut=cut, answer=question is not None) for said in given):
        return "prompt_echo"
    return "repetition" if _is_loop(words) else ""


def badness(text: str, fault: str) -> tuple[int, float]:
    """Return by what texts with faults are compared: less is better."""
    return (1 + FAULTS.index(fault), repeated_share(_words(text))) if fault else (0, 0.0)


def repeated_share(words: Sequence[str]) -> float:
    """Return how many of the three-word sequences have been said before, as a share."""
    sequences = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def trim_to_sentence(text: str) -> str:
    """Cut behind the last whole sentence, its closing quotes kept; a text without any is left as it is."""
    for match in reversed(list(_SENTENCE_END.finditer(text))):
        before = text[: match.start()]
        if _WORD.search(before) and not (match.group().startswith(".") and _NO_SENTENCE.search(before)):
            return text[: match.end()]
    return text


def strip_prefixes(text: str, prefixes: Sequence[str]) -> str:
    """Take prefixes, and spaces behind them, off the beginning as long as one is there; the longest comes first.

    Upper and lower case are one; half a word is no prefix. What would leave no word is not done.
    """
    longest_first = sorted(prefixes, key=len, reverse=True)
    while True:
        shorter = (_without(text, prefix) for prefix in longest_first)
        rest = next((rest for rest in shorter if _WORD.search(rest) and rest != text), None)
        if rest is None:
            return text
        text = rest


def _without(text: str, prefix: str) -> str:
    match = re.match(re.escape(prefix), text, re.IGNORECASE)
    if not match:
        return text
    rest = text[match.end() :]
    half_a_word = _SPACED.match(rest) and _SPACED.match(match.group()[-1])
    return text if half_a_word else rest.lstrip()


def _words(text: str) -> list[str]:
    """Split at spaces and punctuation, for comparison; of a text that is all punctuation, every character counts."""
    return _WORD.findall(text.casefold()) or list("".join(text.split()))


def _is_echo(words: list[str], said: list[str], *, cut: bool, answer: bool) -> bool:
    """Whether a text only says again what was said to it, once or more often; of a `cut` one, the beginning is enough.

    An `answer` that begins so is an echo whatever follows; a caption may go on from its prompt.
    """
    if min(len(words), len(said)) < _LEAST_ECHO:
        return False
    if answer and words[: len(said)] == said:
        return True
    while words[: len(said)] == said:
        words = words[len(said) :]
    return not words or (cut and words == said[: len(words)])


def _is_loop(words: list[str]) -> bool:
    if len(words) - len(set(words)) < _LEAST_DOUBLES:
        return False
    if len(words) >= _LEAST_JUDGED and repeated_share(words) > _MOST_REPEATED:
        return True
    for length in range(1, len(words) // 2 + 1):
        least = max(_LEAST_TIMES * length, _LEAST_WORDS) if length < _LONG else 2 * length
        num_same = 0
        for word, before in zip(words[length:], words, strict=False):
            num_same = num_same + 1 if word == before else 0
            if length + num_same >= least:
                return True
    return False
