"""BLEU-1 to BLEU-4 (Papineni et al. 2002), as the reference evaluator computes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from blip2cap.evaluate.metric import Floats, Integers, Metric, make_metric
from blip2cap.evaluate.ngrams import MAX_N, Corpus, Counts, count_ngrams, shared_ngrams, sum_by

_TINY, _SMALL = 1e-15, 1e-9
"""Added to a numerator and to a denominator, as in the reference evaluator."""


def bleu(corpus: Corpus) -> list[Metric]:
    """Score candidates by the share of their n-grams that is in a reference, for n-grams up to 1, 2, 3 and 4 words.

    The value is computed from sums over all candidates; the score of an item, from that candidate alone.
    """
    own_length = corpus.length[: corpus.num_images]
    correct = [_correct(corpus, counts) for counts in count_ngrams(corpus)]
    guessed = [np.maximum(own_length - n, 0) for n in range(MAX_N)]
    statistics = np.stack([*correct, *guessed, own_length, _closest_length(corpus)], axis=1)
    return [make_metric(f"BLEU-{n}", statistics, _combiner(n), _score(statistics.T, n)) for n in range(1, MAX_N + 1)]


def _combiner(n: int) -> Callable[[Floats], float]:
    return lambda sums: float(_score(sums, n))


def _score(statistics: Floats, n: int) -> Floats:
    """Return the scores for statistics of items or of all of them, [statistics, ...] -> [...]."""
    correct, guessed = statistics[:n], statistics[MAX_N : MAX_N + n]
    ratio = (statistics[-2] + _TINY) / (statistics[-1] + _SMALL)
    penalty = np.exp(np.minimum(1 - 1 / ratio, 0))
    return np.asarray(np.prod((correct + _TINY) / (guessed + _SMALL), axis=0) ** (1 / n) * penalty)


def _correct(corpus: Corpus, counts: Counts) -> Floats:
    """Return the number of n-grams of each candidate that are in a reference, each at most as often as there."""
    most = np.zeros_like(counts.count)
    entries, own_entries = shared_ngrams(corpus, counts)
    np.maximum.at(most, own_entries, counts.count[entries])
    num_shared = np.minimum(most, counts.count)
    return sum_by(counts.text, num_shared, len(corpus.image))[: corpus.num_images]


def _closest_length(corpus: Corpus) -> Integers:
    """Return the length of the reference that is closest to that of the candidate; of two, the shorter one."""
    references = slice(corpus.num_images, None)
    image, length = corpus.image[references], corpus.length[references]
    order = np.lexsort((length, np.abs(length - corpus.length[image]), image))
    first = np.unique(image[order], return_index=True)[1]
    return length[order][first]
