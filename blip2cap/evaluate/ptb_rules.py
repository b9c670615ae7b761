"""Rules for the words that Stanford's PTBTokenizer finds: a pattern, and the form in which the word is written.

At each place the longest match wins, that of the first rule if there are several. A group in a pattern is the word; the
rest of the match must follow it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from blip2cap.evaluate.ptb_words import (
    ABBREVIATIONS,
    APOSTROPHE_WORDS,
    CAPITALISED_ABBREVIATIONS,
    ENTITIES,
    FILE_NAME_ENDINGS,
    MARKS,
    NOT_UPPER_ABBREVIATIONS,
    NUMBER_ABBREVIATIONS,
    QUOTES,
    SENTENCE_STARTS,
    SPLIT_WORDS,
    SYMBOLS,
    WRITTEN,
)

_APOSTROPHE = "(?:['\x92’]|&apos;)"
_AUXILIARY = rf"{_APOSTROPHE}(?i:[msd]|re|ve|ll)"
_NEGATION = "[nN]['\x92’‘`][tT]"
_AND = "(?:&|&amp;)"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_NUMBER = r"(?:\d*(?:[.:,\xad\u066b\u066c]\d+)+|\d+)"
_PHONE = r"\d{2,4}[- \xa0]\d{3,4}[- \xa0]?\d{3,5}"
_PART = "[A-Za-z0-9\xad]+"
"""A part of a word with hyphens or slashes."""
_NAME_START = f"(?:[dDoOlL]{_APOSTROPHE}(?=[A-Za-z0-9]{{2}}))"
"""The start of O'Neil and d'Arc."""
_ADDRESS = r'[a-zA-Z0-9][^ \t"<>|(){}\xa0]*@(?:[^ \t"<>|(){}.\xa0]+\.)*[^ \t"<>|(){}.\xa0]+(?:>|&gt;)?'
_PATH = r'(?:/[^ \t"<>|()]+[^ \t"<>|.!?(){},-])?'
_SITE = rf"""(?:[^ \t"`'<>|!?(){{}}$,-_]+\.)+(?i:com|net|org|edu){_PATH}"""
r"""The address of a site. `,-_` is a range, with capitals and digits in it: as PTBTokenizer does."""
_TAG_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_TAG = rf"""<(?:[!?][A-Za-z-][^>]*|/{_TAG_NAME} *|{_TAG_NAME}(?: +{_TAG_NAME}(?: *= *(?:"[^"]*"|'[^']*'))?)* *[/?]?)>"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One kind of word."""

    pattern: re.Pattern[str]
    """Matches the word, or has it as its group."""
    write: Callable[[str], str]
    """Word as in the text -> as in the line of words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """All kinds of words, by the character that they begin with."""

    alphanumeric: tuple[Rule, ...]
    """A letter or a digit."""
    other: tuple[Rule, ...]
    """Any other."""


@cache
def make_rules(is_ascii: bool) -> Rules:
    """Compile the rules. Those for texts in ASCII alone are faster."""
    if is_ascii:
        letter, character = "[A-Za-z]", "[A-Za-z0-9]"
    else:
        numeric = "".join(each for each in map(chr, range(0x80, 0x10000)) if _is_symbol(each))
        # A character above U+FFFF is two for Java, neither of which is a letter.
        no_letter = rf"(?![{numeric}\U00010000-\U0010ffff])"
        letter, character = rf"(?:{no_letter}[^\W\d_]|[{MARKS}])", rf"(?:{no_letter}[^\W_]|\xad)"
    word = rf"{letter}(?:{letter}|\d)*(?:[.!?]{letter}(?:{letter}|\d)*)*"
    return Rules(
        alphanumeric=(
            *_rules(_contractions(letter), _straighten),
            *_rules(_words(word, letter, character), _plain),
            *_rules(_abbreviations(letter), _plain),
            *_rules(_addresses(character), _plain),
            *_rules(_numbers(), _plain),
        ),
        other=(
            *_rules((_TAG,), _spaceless),
            *_rules(_apostrophes(letter), _plain),
            *_rules((rf"{_AUXILIARY}(?!{letter})",), _straighten),
            *_rules((rf"[-+]{_NUMBER}", *_numbers(), rf"(?:<|&lt;){_ADDRESS}", _SITE), _plain),
            *_rules((r"\(\d{2,3}\)[ \xa0]?\d{3,4}[- \xa0]?\d{3,5}", *_faces()), _plain),
            *_rules((word, rf"&[aeiouAEIOU](?:acute|grave|uml);{letter}*"), _plain),
            *_rules(_runs(letter), _plain),
            *_rules((f"(?i:{'|'.join(ENTITIES)})",), lambda word: ENTITIES[word.lower()]),
            *_rules((r"''|'", f"[{''.join(QUOTES)}]{{1,2}}"), _quotes),
            *_rules((r"-{1,4}",), lambda word: "--"),
            *_rules((r"\.{3,5}",), lambda word: "..."),
            *_rules((rf"[{SYMBOLS}]",), lambda word: WRITTEN.get(word, word.lower())),
        ),
    )


def _is_symbol(character: str) -> bool:
    r"""Return True for what Python's \w has besides letters, digits and _: fractions, raised digits."""
    return character.isnumeric() and not (character.isalpha() or character.isdecimal())


def _rules(patterns: Iterable[str], write: Callable[[str], str]) -> Iterator[Rule]:
    for pattern in patterns:
        yield Rule(pattern=re.compile(pattern), write=write)


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


def _contractions(letter: str) -> Iterator[str]:
    yield rf"({letter}+?){_NEGATION}"
    yield _NEGATION
    yield rf"((?:{letter}|\d)+){_AUXILIARY}(?!{letter})"
    yield from (f"(?i:({first}){second})" for first, second in SPLIT_WORDS)


def _words(word: str, letter: str, character: str) -> Iterator[str]:
    joined = rf"{character}+(?:[-_\u058a\u2010\u2011]{character}+)+"
    company = r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"
    hyphenated = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-{_PART})+"
    # Any of them keeps its dot before another mark.
    yield rf"((?:{word}|\d{character}*|{joined}|{hyphenated}|{company})\.)[,;:\u3001]"
    yield word
    yield rf"\d{character}*"
    yield joined
    yield rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{_ACRONYM}\.|{_PART}))+"
    yield rf"{_NAME_START}?{_PART}(?:-(?:{_ACRONYM}\.|{_NAME_START}?{_PART}))*"
    yield rf"{_PART}(?:-[A-Za-z]+){{0,2}}(?:\\?/{_PART}(?:-[A-Za-z]+){{0,2}}){{1,2}}"
    yield company
    yield rf"[Cc]\+\+|S{_AND}(?:P-500|Ls)|C\.D\.s|(?:[Pp]ro|[Aa]nti)-|[A-Z]+\$"
    yield f"[lLdDjJ]{_APOSTROPHE}"
    yield rf"[A-HJ-XZdlno]{_APOSTROPHE}{letter}{{2,}}"
    yield rf"{letter}+[aeiouyAEIOUY]{_APOSTROPHE}[aeiouA-Z]{letter}*"
    yield rf"([yY]{_APOSTROPHE}){letter}"
    yield f"(?i:{_any(APOSTROPHE_WORDS)})".replace("'", _APOSTROPHE)


def _abbreviations(letter: str) -> Iterator[str]:
    starts = _any(form for word in SENTENCE_STARTS for form in (word.title(), word.upper()))
    yield rf"([A-Za-z])\. +(?:(?:A(?!\.)|{starts})(?!{letter})|{_TAG})"
    yield rf"(?i:[a-z]|{_any(ABBREVIATIONS)})\."
    yield rf"(?=[A-Z])(?i:{_any(CAPITALISED_ABBREVIATIONS)})\."
    yield rf"(?:{_any(form for word in NOT_UPPER_ABBREVIATIONS for form in (word.title(), word))})\."
    yield rf"((?i:{_any(NUMBER_ABBREVIATIONS)})\.) ?\d"
    yield rf"{_ACRONYM}\."
    yield r"(?i:ph\.ds?|ed\.d)\."


def _addresses(character: str) -> Iterator[str]:
    yield rf"{character}+(?:\.{character}+)*\.(?i:{_any(FILE_NAME_ENDINGS)})(?=[ \t\xa0.,!?]|$)"
    yield r'(?i:https?)://[^ \t"<>|(){}]+[^ \t"<>|.!?(){},-]'
    yield rf'www\.(?:[^ \t"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{_PATH}'
    yield _SITE
    yield _ADDRESS


def _numbers() -> Iterator[str]:
    yield _NUMBER
    yield r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"
    yield r"(?:\d{1,4}[- \xa0])?\d{1,4}[/\u2044]\d{1,4}"
    yield rf"(?:\+\+?)?(?:\d{{2,4}}[- \xa0])?{_PHONE}"
    yield r"(?:\+\+?)?(?:\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5}"


def _apostrophes(letter: str) -> Iterator[str]:
    yield "('[tT])(?i:is|was)"
    yield rf"{_APOSTROPHE}(?i:n(?:{_APOSTROPHE}|(?!{letter}))|em|till?|cause)"
    yield rf"{_APOSTROPHE}(?:[2-9]0[sS]|\d\d(?=[ \t\xa0]|$))"


def _faces() -> Iterator[str]:
    yield r"[<>]?[:;=][-o*']?[()DPOdp@|\[\\{\]](?![A-Za-z0-9])"
    yield r"\([-^x=~<>'](?:[_.]?[-^x=~<>'])\)|[-^=~<>']_[-^=~<>']"


def _runs(letter: str) -> Iterator[str]:
    """Yield several symbols that are one word, and names that begin with one."""
    yield r"@[A-Za-z_][A-Za-z_0-9]*"
    yield rf"\#{letter}+"
    yield r"@+|\#+|_+|\*+|(?:\\\*){1,3}|[?!]+|<<|>>|-{5,}"
    yield "[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)"
    yield "-(?i:[LR][RCS]B)-"
    yield r"&#\d+;|&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq);"


def _plain(word: str) -> str:
    word = word.replace("&amp;", "&").replace("&apos;", "'").replace("\xad", "")
    return _spaceless(word.replace("(", "-lrb-").replace(")", "-rrb-"))


def _spaceless(word: str) -> str:
    return word.replace(" ", "\xa0").lower()


def _straighten(word: str) -> str:
    return _plain(word.replace("’", "'").replace("\x92", "'").replace("‘", "`"))


def _quotes(word: str) -> str:
    return "".join(QUOTES.get(mark, mark) for mark in word)
