"""CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726), as the reference evaluator computes it."""

from __future__ import annotations

import numpy as np

from blip2cap.evaluate.metric import Floats, Metric, make_mean
from blip2cap.evaluate.ngrams import MAX_N, Corpus, Counts, count_ngrams, shared_ngrams, sum_by

_SIGMA = 6.0
"""Width of the penalty for a difference in length, in words."""
_SCALE = 10.0


def cider_d(corpus: Corpus) -> Metric:
    """Score candidates by the n-grams that they share with references, rare ones first: from 0 to 10.

    The weights of n-grams come from the references of all images, also in a bootstrap sample. With one image, all
    weights, and so all scores, are 0.
    """
    num_pairs = np.maximum(corpus.length - 1, 0)
    # The reference evaluator compares the numbers of pairs of words, not of words.
    difference = num_pairs - num_pairs[corpus.image]
    penalty = np.exp(-(difference**2) / (2 * _SIGMA**2))
    similarity = sum(_similarity(corpus, counts) for counts in count_ngrams(corpus)) / MAX_N * penalty
    images = corpus.image[corpus.num_images :]
    sums = sum_by(images, similarity[corpus.num_images :], corpus.num_images)
    return make_mean("CIDEr-D", _SCALE * sums / np.bincount(images))


def _similarity(corpus: Corpus, counts: Counts) -> Floats:
    """Return the cosine of each reference and its candidate, whose weights are clipped to the reference's: [texts]."""
    num_texts = len(corpus.image)
    weight = counts.count * _rarity(corpus, counts)[counts.ngram]
    norm = np.sqrt(sum_by(counts.text, weight**2, num_texts))
    entries, own_entries = shared_ngrams(corpus, counts)
    clipped = np.minimum(weight[own_entries], weight[entries])
    product = sum_by(counts.text[entries], clipped * weight[entries], num_texts)
    lengths = norm * norm[corpus.image]
    np.divide(product, lengths, out=product, where=lengths != 0)
    return product


def _rarity(corpus: Corpus, counts: Counts) -> Floats:
    """Return the logarithm of the number of images by those that have the n-gram in a reference, [n-grams]."""
    in_references = counts.text >= corpus.num_images
    images = corpus.image[counts.text[in_references]]
    keys = np.unique(images * counts.num_ngrams + counts.ngram[in_references])
    num_images = np.bincount(keys % counts.num_ngrams, minlength=counts.num_ngrams)
    return np.asarray(np.log(corpus.num_images) - np.log(np.maximum(num_images, 1)))
