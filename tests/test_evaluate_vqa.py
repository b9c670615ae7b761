"""Accuracy of answers, against values of the official evaluation (`make_vqa_golden.py`)."""

from __future__ import annotations

import json

import pytest

from blip2cap.evaluate.vqa import accuracy, consensus, is_right, normalise
from tests.make_vqa_golden import GOLDEN, cases


def test_answers_are_normalised_and_scored_as_the_official_evaluation_does() -> None:
    rows = json.loads(GOLDEN.read_text())
    assert [(answer, people) for answer, people, _, _ in rows] == cases()
    for answer, people, normal, value in rows:
        assert normalise(answer) == normal, answer
        assert 100 * accuracy(answer, people) == pytest.approx(value), (answer, people)


@pytest.mark.parametrize(("num_same", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_accuracy_is_the_mean_over_nine_of_ten_people(num_same: int, expected: float) -> None:
    people = ["yes"] * num_same + [f"other {number}" for number in range(10 - num_same)]
    assert accuracy("yes", people) == pytest.approx(expected)


def test_a_right_answer_is_one_of_the_references_after_normalisation() -> None:
    assert is_right("The Two dogs.", ["a cat", "2 dogs"])
    assert not is_right("dogs", ["2 dogs"])
    assert consensus(["no", "Yes", "yes."]) == "yes"
    assert consensus(["no", "yes"]) == "no"
