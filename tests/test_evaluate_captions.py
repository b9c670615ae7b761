"""The metrics of captions, beside those of pycocoevalcap, and over samples of the images."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu  # type: ignore[import-untyped]
from pycocoevalcap.cider.cider import Cider  # type: ignore[import-untyped]
from pycocoevalcap.rouge.rouge import Rouge  # type: ignore[import-untyped]

from blip2cap.errors import InputError, UsageError
from blip2cap.evaluate.captions import score_captions
from blip2cap.evaluate.metric import Metric, make_mean
from blip2cap.evaluate.rouge import longest_common_subsequence

WORDS = (
    "a",
    "the",
    "man",
    "dog",
    "red",
    "cat",
    "on",
    "in",
    "of",
    "sitting",
    "standing",
    "with",
    "two",
    "street",
    "and",
)


def by_pycocoevalcap(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, tuple[float, Sequence[float]]]:
    """Return value and scores of the images for each metric. Texts must be split into words already."""
    ours = {number: [text] for number, text in enumerate(candidates)}
    theirs = {number: list(texts) for number, texts in enumerate(references)}
    values, scores = Bleu(4).compute_score(theirs, ours, verbose=0)
    found = {f"BLEU-{n}": (values[n - 1], scores[n - 1]) for n in (1, 2, 3, 4)}
    found["ROUGE-L"] = Rouge().compute_score(theirs, ours)
    found["CIDEr-D"] = Cider().compute_score(theirs, ours)
    return found


def random_captions(seed: int, num_images: int = 40) -> tuple[list[str], list[list[str]]]:
    """Return captions of 0 to 14 words and 1 to 5 references of each."""
    draw = random.Random(seed)

    def caption() -> str:
        # The first words are drawn most often, as in texts.
        return " ".join(WORDS[int(len(WORDS) * draw.random() ** 2)] for _ in range(draw.randrange(15)))

    return [caption() for _ in range(num_images)], [
        [caption() for _ in range(draw.randint(1, 5))] for _ in range(num_images)
    ]


def same_as_pycocoevalcap(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    expected = by_pycocoevalcap(candidates, references)
    for metric in score_captions(candidates, references):
        value, scores = expected[metric.name]
        assert metric.value == pytest.approx(value, abs=1e-9), metric.name
        assert metric.per_item == pytest.approx(np.array(scores), abs=1e-9), metric.name


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_pycocoevalcap(seed):
    same_as_pycocoevalcap(*random_captions(seed))


@pytest.mark.parametrize(
    ("candidates", "references"),
    [
        (["a dog"], [["a dog"]]),
        (["a dog on a mat", "a cat"], [["a dog on a mat"], ["a cat"]]),
        (["", "a cat"], [["a dog on a mat"], [""]]),
        (["", ""], [["", "a"], [""]]),
        (["a", "b"], [["b"], ["a"]]),
        (["a a a a a a", "b"], [["a a", "a b a"], ["a", "b b"]]),
    ],
    ids=["one image", "equal", "empty texts", "nothing but empty texts", "nothing shared", "repeated words"],
)
def test_corner_cases_are_those_of_pycocoevalcap(candidates, references):
    same_as_pycocoevalcap(candidates, references)


def test_a_sample_scores_as_its_items_would():
    candidates, references = random_captions(7)
    sample = np.array([3, 3, 8, 0, 25])
    chosen = [candidates[number] for number in sample], [references[number] for number in sample]
    for metric, alone in zip(score_captions(candidates, references), score_captions(*chosen), strict=True):
        # The weights of CIDEr's n-grams stay those of all images.
        assert metric.per_item is not None
        expected = metric.per_item[sample].mean() if metric.name == "CIDEr-D" else alone.value
        assert metric.resample(sample) == pytest.approx(expected)
        assert metric.resample(np.arange(len(candidates))) == pytest.approx(metric.value)


def test_metrics_come_in_the_order_asked_for():
    metrics = score_captions(["a dog"], [["a dog"]], metrics=("ROUGE-L", "BLEU-4"))
    assert [metric.name for metric in metrics] == ["ROUGE-L", "BLEU-4"]


def test_texts_are_split_into_words_without_case_or_punctuation():
    metrics = score_captions(["A dog, on a mat.", "A cat!"], [["a dog on a mat"], ["a cat"]])
    assert [metric.value for metric in metrics] == pytest.approx([1, 1, 1, 1, 1, metrics[-1].value], abs=1e-6)
    assert metrics[-1].value == pytest.approx(7.5)  # a text of two words has no 3-grams


def test_an_unknown_metric_names_those_that_exist():
    with pytest.raises(UsageError, match=r"CIDEr: must be of BLEU-1.*CIDEr-D"):
        score_captions(["a"], [["a"]], metrics=("CIDEr",))


@pytest.mark.parametrize(("candidates", "references"), [([], []), (["a"], [[]]), (["a", "b"], [["a"]])])
def test_a_caption_without_references_is_an_error(candidates, references):
    with pytest.raises(InputError, match="every caption needs"):
        score_captions(candidates, references)


@pytest.mark.parametrize(
    ("first", "second", "length"), [("", "abc", 0), ("abc", "abc", 3), ("abcbdab", "bdcaba", 4), ("aaa", "aa", 2)]
)
def test_the_longest_common_subsequence(first, second, length):
    assert longest_common_subsequence(first, second) == length


def test_a_mean_is_resampled():
    metric: Metric = make_mean("accuracy", np.array([1.0, 0.0, 0.5]))
    assert metric.value == 0.5
    assert metric.resample(np.array([0, 0, 2, 1])) == 0.625
