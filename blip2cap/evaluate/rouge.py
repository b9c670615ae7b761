"""ROUGE-L (Lin 2004), as the reference evaluator computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blip2cap.evaluate.metric import Metric, make_mean

_BETA = 1.2
"""Weight of recall against precision."""


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Metric:
    """Score tokenised candidates by the longest common subsequence with a reference: from 0 to 1."""
    scores = [_score(text, texts) for text, texts in zip(candidates, references, strict=True)]
    return make_mean("ROUGE-L", np.array(scores))


def _score(candidate: str, references: Sequence[str]) -> float:
    """Combine the best precision and the best recall, which may be those of two references."""
    own = candidate.split(" ")
    precision = recall = 0.0
    for reference in references:
        words = reference.split(" ")
        common = longest_common_subsequence(own, words)
        precision, recall = max(precision, common / len(own)), max(recall, common / len(words))
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return its length, with a column of the table in the bits of a number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for number, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << number
    every = (1 << len(first)) - 1
    column = every
    for word in second:
        matches = column & places.get(word, 0)
        column = (column + matches | column - matches) & every
    return len(first) - column.bit_count()
