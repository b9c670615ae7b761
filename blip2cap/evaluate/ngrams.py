"""Words as numbers, and the n-grams of many texts counted at once.

W = words of all texts, E = entries: pairs of a text and an n-gram in it, S = n-grams shared by candidate and reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from blip2cap.evaluate.metric import Floats, Integers

MAX_N = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Candidates and references, split into words. Text i < num_images is the candidate of image i."""

    num_images: int
    """Number of images."""
    image: Integers
    """Image of each text, [texts]: candidates, then all references of the first image, of the second, ..."""
    length: Integers
    """Number of words of each text, [texts]."""
    word: Integers
    """Numbers of the words of all texts, one text after the other, [W]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """The n-grams of one length: how often each is in each text. Entries are sorted by text, then by n-gram."""

    num_ngrams: int
    """Number of different n-grams."""
    text: Integers
    """[E]"""
    ngram: Integers
    """[E], from 0 to `num_ngrams`."""
    count: Integers
    """[E], from 1."""


def make_corpus(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Corpus:
    """Split tokenised texts at white space, as the reference evaluator does for BLEU and CIDEr."""
    numbers: dict[str, int] = {}
    texts = [text.split() for text in candidates]
    texts += [text.split() for texts_of_image in references for text in texts_of_image]
    words = [numbers.setdefault(word, len(numbers)) for text in texts for word in text]
    images = np.arange(len(candidates))
    return Corpus(
        num_images=len(candidates),
        image=np.concatenate([images, np.repeat(images, [len(texts_of_image) for texts_of_image in references])]),
        length=np.array([len(text) for text in texts], dtype=np.int64),
        word=np.array(words, dtype=np.int64),
    )


def count_ngrams(corpus: Corpus) -> Iterator[Counts]:
    """Yield the counts of words, of pairs of words, and so on to MAX_N."""
    text = np.repeat(np.arange(len(corpus.length)), corpus.length)
    start = np.arange(len(text))
    ngram, num_words = corpus.word, int(corpus.word.max(initial=0)) + 1
    num_ngrams = num_words
    for n in range(1, MAX_N + 1):
        if n > 1:
            last = start + n - 1
            fits = last < len(text)
            fits[fits] = text[last[fits]] == text[start[fits]]
            start, ngram = start[fits], ngram[fits]
            # An n-gram is the one without its last word, and that word.
            different, ngram = np.unique(ngram * num_words + corpus.word[start + n - 1], return_inverse=True)
            num_ngrams = max(len(different), 1)
        keys, counts = np.unique(text[start] * num_ngrams + ngram, return_counts=True)
        yield Counts(num_ngrams=num_ngrams, text=keys // num_ngrams, ngram=keys % num_ngrams, count=counts)


def shared_ngrams(corpus: Corpus, counts: Counts) -> tuple[Integers, Integers]:
    """Return the entries of references that the candidate of the same image has too, and the candidate's: [S], [S]."""
    keys = corpus.image[counts.text] * counts.num_ngrams + counts.ngram
    # Entries of candidates come first, and their keys are sorted.
    num_own = int(np.searchsorted(counts.text, corpus.num_images))
    places = np.searchsorted(keys[:num_own], keys[num_own:])
    is_shared = np.append(keys[:num_own], -1)[places] == keys[num_own:]
    return np.flatnonzero(is_shared) + num_own, places[is_shared]


def sum_by(numbers: Integers, weights: Floats, length: int) -> Floats:
    """Return the sums of the weights that have each number, [length]."""
    sums = np.zeros(length)
    np.add.at(sums, numbers, weights)
    return sums
