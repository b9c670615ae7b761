"""Accuracy of answers as the official VQA evaluation computes it (https://visualqa.org/evaluation.html)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

OFFICIAL_ANSWERS = 10
"""Number of people who have answered each question of VQA."""
LEAST_ANSWERS = 4
"""With fewer answers, no answer could reach an accuracy of 1: it takes three others who agree."""
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {**{word: str(number) for number, word in enumerate(_NUMBERS)}, "none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# The official table has each of these with any one of its apostrophes left out, and one word the other way round.
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}


@lru_cache(maxsize=1 << 16)
def normalise(answer: str) -> str:
    """Return an answer as it is compared: no punctuation, no articles, numbers as digits, contractions spelt out."""
    answer = _trimmed(answer)
    has_thousands = re.search(r"\d,\d", answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        # At the end of a word a mark is left out; between two it becomes a space.
        is_between = not (f"{mark} " in answer or f" {mark}" in answer or has_thousands)
        text = text.replace(mark, " " if is_between else "")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(answer: str, references: Sequence[str]) -> float:
    """Return the mean, over the people who answered, of min(others who gave this answer / 3, 1).

    As in the official evaluation, answers are normalised only if people have disagreed.
    """
    answer, people = _trimmed(answer), [_trimmed(each) for each in references]
    if len(set(people)) > 1:
        answer, people = normalise(answer), [normalise(each) for each in people]
    num_same = people.count(answer)
    others = len(people) - num_same
    return (others * min(num_same / 3, 1) + num_same * min(max(num_same - 1, 0) / 3, 1)) / len(people)


def is_right(answer: str, references: Sequence[str]) -> bool:
    """Return whether an answer is one of those that people gave, all normalised."""
    return normalise(answer) in map(normalise, references)


def consensus(references: Sequence[str]) -> str:
    """Return the answer, normalised, that most people gave; of several, the first."""
    people = [normalise(each) for each in references]
    return max(people, key=people.count)


def _trimmed(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
