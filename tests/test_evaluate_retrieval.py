"""Recall both ways, against a search by hand; equal scores; ranking again."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from blip2cap.evaluate.retrieval import CUTS, make_task, recalls, reranked
from blip2cap.index.encoder import log_odds
from blip2cap.jobs.job import Listener
from blip2cap.models.base import Checkpoint
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from tests.matching import FakeMatcher

RNG = np.random.default_rng(0)


FAKE = Checkpoint(name="fake", folder=Path(), commit="", family="matching", config={})


def values(scores: np.ndarray, task) -> list[float]:
    return [metric.value for metric in recalls(scores, scores, task, suffix="")]


def test_recall_is_the_share_of_texts_and_images_whose_own_is_among_the_first() -> None:
    task = make_task([(f"{at}.jpg", [f"text {at} {number}" for number in range(1 + at % 3)]) for at in range(30)])
    scores = RNG.normal(size=(30, len(task.texts)))
    scores[task.owners, np.arange(len(task.texts))] += 1.5
    expected = []
    for cut in CUTS:
        best = np.argsort(-scores, axis=0)[:cut]
        expected.append(np.mean([task.owners[text] in best[:, text] for text in range(len(task.texts))]))
    for cut in CUTS:
        best = np.argsort(-scores, axis=1)[:, :cut]
        expected.append(np.mean([any(task.owners[text] == at for text in best[at]) for at in range(30)]))
    assert values(scores, task) == pytest.approx(expected)
    assert 0.2 < min(expected) < max(expected) < 1


def test_a_model_that_gives_everything_the_same_score_has_the_recall_of_chance() -> None:
    task = make_task([(f"{at}.jpg", [f"text {at}"]) for at in range(20)])
    assert values(np.ones((20, 20)), task) == pytest.approx([cut / 20 for cut in CUTS] * 2)


def test_equal_scores_count_as_the_mean_over_their_orders() -> None:
    task = make_task([(f"{at}.jpg", [f"text {at}"]) for at in range(4)])
    scores = np.array([[1, 0, 0, 0], [1, 2, 0, 0], [0, 2, 5, 0], [0, 2, 9, 5.0]])
    found = []
    for order in itertools.permutations(range(4)):
        by_text = [next(k for k in sorted(range(4), key=lambda at: (-scores[at, t], order[at]))) for t in range(4)]
        found.append(np.mean([first == t for t, first in enumerate(by_text)]))
    assert values(scores, task)[0] == pytest.approx(np.mean(found))


def test_the_same_text_of_another_image_is_right_for_an_image() -> None:
    task = make_task([("a.jpg", ["a cat"]), ("b.jpg", ["a cat"]), ("c.jpg", ["a dog"])])
    assert task.own.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    scores = np.array([[0.9, 0.9, 0.1], [0.5, 0.5, 0.1], [0.2, 0.2, 0.8]])
    one_to_image, *_, one_to_text, _, _ = values(scores, task)
    assert one_to_text == 1
    assert one_to_image == pytest.approx(2 / 3)  # the text of b.jpg finds a.jpg first


def test_texts_of_one_image_are_drawn_together() -> None:
    task = make_task([("a.jpg", ["1", "2"]), ("b.jpg", ["3"])])
    scores = np.array([[1, 0, 0], [0, 1, 1.0]])
    metric = recalls(scores, scores, task, suffix="")[0]
    assert metric.value == pytest.approx(2 / 3)
    assert metric.resample(np.array([0, 0])) == pytest.approx(1 / 2)
    assert metric.per_item is not None
    assert metric.per_item.tolist() == [0.5, 1]


def test_the_best_of_each_text_and_of_each_image_are_ranked_again(images: Path) -> None:
    searcher: Any = SimpleNamespace(
        encoder=SimpleNamespace(model=FakeMatcher(FAKE)),
        ref_of=lambda name: ImageRef(path=str(images / name), name=name),
    )
    task = make_task([("a.png", ["red"]), ("b.png", ["green", "a green one"]), ("sub/c.png", ["blue"])])
    scores = np.array([[0.9, 0.8, 0.1, 0.0], [0.1, 0.2, 0.3, 0.0], [0.0, 0.0, 0.0, 0.7]])
    by_text, by_image = reranked(searcher, scores, task, 1, DecodeOptions(), Listener())
    assert np.isfinite(by_text).tolist() == [
        [True, True, False, False],
        [False, False, True, False],
        [False] * 3 + [True],
    ]
    assert np.isfinite(by_image).tolist() == [
        [True, False, False, False],
        [False, False, True, False],
        [False] * 3 + [True],
    ]
    assert by_text[2, 3] == by_image[2, 3] == pytest.approx(np.log(0.8 / 0.2) + 0.7, abs=0.01)
    assert by_text[0, 1] == pytest.approx(log_odds(0) + 0.8)
