"""Texts and their words by Stanford's PTBTokenizer, for tests without Java: `python -m tests.make_ptb_golden`.

Takes Java and pycocoevalcap. Writes tests/golden/ptb/captions.txt (texts like captions, drawn here), documents.txt
(lines of the documentation and the docstrings) and cases.txt (special words; to add some, add a line and run this).
A line is a text, a tab, and its words, without punctuation, as pycocoevalcap passes them to its metrics.
"""

from __future__ import annotations

import ast
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "golden" / "ptb"
NUM_CAPTIONS, NUM_LINES = 2000, 1500

OPENINGS = (
    *("A man", "a woman", "Two children", "a couple of dogs", "The cat", "a group of people", "An old-fashioned train"),
    *(
        "a close up of a T-shirt",
        "3 girls",
        "A 10-year-old boy",
        "a black-and-white photo of a cow",
        "Mr. Brown",
        "She",
    ),
    *("a naïve drawing of a café", "a piñata", "someone's grandmother", "The men's team", "two kids' bikes", "It"),
    *("there is a person who", "a 1950s car", "the U.S. president", "Dr. Smith", "a jack-o'-lantern", "Beyoncé"),
)
VERBS = (
    *("is sitting on", "isn't looking at", "doesn't touch", "rides", "can't see", "that's next to", "they're holding"),
    *("holding up", "stands in front of", "who's eating", "is about to hit", "cannot reach", "wearing", "is gonna eat"),
)
OBJECTS = (
    *("a red bench", "the surfboard", "a half-eaten pizza", 'a sign that says "stop"', "a sign reading 'No. 5'"),
    *("a bottle of Dr. Pepper", "a stop sign on 5th Ave.", "a $5 bill", "a £20 note", "€3.50 of coffee", "50% off"),
    *("a 12-inch ruler", "a 5'10\" man", "1/2 of a sandwich", "1 1/2 cups of tea", "a 35mm camera", "10kg of apples"),
    *("a clock at 10:30 a.m.", "the number 1,000,000", "a bus to St. Louis", "a screen with www.example.com on it"),
    *("a poster of http://example.org/shop?id=5", "a card with name@example.com", "rock 'n' roll", "a '90s computer"),
    *("a crème brûlée", "the São Paulo skyline", "a jalapeño", "a smörgåsbord", "B&B rooms", "AT&T's logo", "M&M's"),
    *("a tennis racket (and a ball)", "a laptop, a mouse and a phone", "a dog; a cat", "the letters A, B and C."),
    *(
        "a road sign: 55 mph",
        "it's owner",
        "its owner's hat",
        "a “curly” quotation",
        "the chef’s knife",
        "a kite/balloon",
    ),
    *(
        "a street in Washington D.C.",
        "a 747",
        "a 3-D model",
        "an e-mail",
        "an X-ray",
        "7-up",
        "a mid-air trick",
        "a UFO",
    ),
    *("a phone number, (555) 555-1234", "16:9 video", "temperatures of 20°C", "½ of a cake", "a 2x4", "a #hashtag"),
    *("a smiley :)", "two hearts ❤❤", "a cake 🎂 with candles", "a ★ on the door", "something... odd", "a wine—red"),
    *("O'Brien's pub", "L'Oréal lipstick", "McDonald's fries", "the year 2019-2020", "Nike™ shoes", "page 3 of 10"),
)
PLACES = (
    "",
    "",
    "in a park",
    "at night",
    "on Main St.",
    "near the water",
    "in New York, N.Y.",
    "at the o'clock tower",
    "outside",
)
ENDS = ("", "", "", ".", ".", " .", "!", "...", "?", " !", ", etc.", '."', "..")


def captions() -> list[str]:
    """Draw texts like captions, every one with something in it that is hard to split."""
    draw = random.Random(0)
    texts: dict[str, None] = {}
    while len(texts) < NUM_CAPTIONS:
        parts = [draw.choice(OPENINGS), draw.choice(VERBS), draw.choice(OBJECTS), draw.choice(PLACES)]
        if draw.random() < 0.3:
            parts += ["and", draw.choice(OBJECTS)]
        text = " ".join(part for part in parts if part) + draw.choice(ENDS)
        if draw.random() < 0.1:
            text = draw.choice((str.upper, str.lower, str.title))(text)
        texts[text] = None
    return list(texts)


def documents() -> list[str]:
    """Return lines of the documentation and of docstrings, in an order of their own."""
    texts: dict[str, None] = {}
    for path in sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("blip2cap/**/*.py"))):
        source = path.read_text()
        lines = docstring_lines(source) if path.suffix == ".py" else source.splitlines()
        texts |= {line.strip(): None for line in lines if len(line.split()) > 3 and "\t" not in line}
    return sorted(random.Random(0).sample(list(texts), min(NUM_LINES, len(texts))))


def docstring_lines(source: str) -> Iterator[str]:
    """Yield the lines of all strings of a module that are statements."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield from text.splitlines()


def cases() -> list[str]:
    """Return the texts that are in cases.txt already."""
    return [text for text, _ in read_golden("cases")]


def read_golden(name: str) -> list[tuple[str, str]]:
    """Return texts and their words."""
    lines = (FOLDER / f"{name}.txt").read_text().removesuffix("\n").split("\n")
    return [(text, words) for text, _, words in (line.rpartition("\t") for line in lines)]


def write_golden(name: str, texts: Sequence[str]) -> None:
    """Write texts and their words."""
    lines = [f"{text}\t{words}\n" for text, words in zip(texts, by_stanford(texts), strict=True)]
    (FOLDER / f"{name}.txt").write_text("".join(lines))


def by_stanford(texts: Iterable[str]) -> list[str]:
    """Return the words of all texts.

    A line "x" follows each: else a capital at the start of the next text may decide that one ends a sentence.
    """
    os.environ["JAVA_TOOL_OPTIONS"] = "-Dfile.encoding=UTF-8"
    lines = [{"caption": line} for text in texts for line in (text, "x")]
    (words,) = PTBTokenizer().tokenize({"all": lines}).values()
    return list(words[::2])


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True, parents=True)
    write_golden("captions", captions())
    write_golden("documents", documents())
    write_golden("cases", cases())
