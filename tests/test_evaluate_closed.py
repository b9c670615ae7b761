"""Closed sets of answers: tables, balanced accuracy, and runs that always say the same."""

from __future__ import annotations

import numpy as np
import pytest

from blip2cap.evaluate.answers import evaluate_answers
from blip2cap.evaluate.closed import Closed, make_closed
from blip2cap.evaluate.entries import Entry
from blip2cap.evaluate.pairs import Pair


def closed(own: list[str], wanted: list[str]) -> Closed | None:
    right = np.array([float(a == b) for a, b in zip(own, wanted, strict=True)])
    return make_closed("all", own, wanted, right, np.arange(len(own)), len(own))


def pairs(*rows: tuple[str, tuple[str, ...]], **reference: str) -> list[Pair]:
    """Return answers with their references, about images of their own."""
    return [
        Pair(
            own=Entry(image=f"{number}.jpg", question="is it?", texts=(answer,)),
            reference=Entry(image=f"{number}.jpg", question="is it?", texts=wanted, **reference),
        )
        for number, (answer, wanted) in enumerate(rows)
    ]


def test_the_table_says_which_answer_was_given_for_which() -> None:
    found = closed(["yes", "yes", "no", "maybe", "no", "yes"], ["yes", "yes", "yes", "yes", "no", "no"])
    assert found is not None
    assert (found.answers, found.others) == (("yes", "no"), ("maybe",))
    assert found.table.tolist() == [[2, 1, 1], [1, 1, 0]]
    assert found.balanced_accuracy.value == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert found.always == pytest.approx(4 / 6)
    assert found.warning == ""


def test_a_run_that_always_says_yes_has_half_the_balanced_accuracy_and_a_warning() -> None:
    found = closed(["yes"] * 10, ["yes"] * 8 + ["no"] * 2)
    assert found is not None
    assert found.balanced_accuracy.value == 0.5
    assert found.warning == 'nearly always "yes": the answer to 10 of 10 questions, the reference of 8'


def test_references_that_are_all_the_same_are_said() -> None:
    found = closed(["yes", "yes"], ["yes", "yes"])
    assert found is not None
    assert 'every reference is "yes"' in found.warning


def test_a_run_that_is_right_about_a_rare_answer_is_not_warned_of() -> None:
    found = closed(["yes"] * 19 + ["no"], ["yes"] * 19 + ["no"])
    assert found is not None
    assert found.warning == ""


def test_an_answer_that_a_sample_lacks_counts_as_overall() -> None:
    found = closed(["yes", "yes", "no", "yes"], ["yes", "yes", "no", "no"])
    assert found is not None
    assert found.balanced_accuracy.resample(np.array([0, 1])) == pytest.approx((1 + 0.5) / 2)
    assert found.balanced_accuracy.resample(np.array([2, 2])) == pytest.approx((1 + 1) / 2)


@pytest.mark.parametrize("wanted", [[str(number) for number in range(11)] * 2, ["a", "b", "c"]])
def test_many_or_rare_answers_are_no_closed_set(wanted: list[str]) -> None:
    assert closed(wanted, wanted) is None


def test_answers_with_ten_references_have_the_official_accuracy_by_type() -> None:
    yes, no = ("yes",) * 10, ("no",) * 8 + ("yes",) * 2
    rows = [
        *pairs(("yes", yes), ("yes", no), ("no", no), answer_type="yes/no", question_type="is"),
        *pairs(("2", ("2",) * 10), answer_type="number", question_type="how many"),
    ]
    found = evaluate_answers("own", rows)
    assert [metric.name for metric in found.metrics] == ["VQA accuracy", "exact match"]
    assert found.metrics[0].value == pytest.approx((1 + 0.6 + 1 + 1) / 4)
    groups = {(group.kind, group.name): group.metric.value for group in found.groups}
    assert groups == {
        ("answer type", "yes/no"): pytest.approx(2.6 / 3),
        ("answer type", "number"): 1,
        ("question type", "is"): pytest.approx(2.6 / 3),
        ("question type", "how many"): 1,
    }
    assert found.notes == ()


def test_one_reference_for_each_question_has_no_official_accuracy() -> None:
    found = evaluate_answers("own", pairs(("Yes.", ("yes",)), ("no", ("yes",)), ("no", ("no",)), ("no", ("no",))))
    assert [(metric.name, metric.value) for metric in found.metrics] == [
        ("exact match", 0.75),
        ("balanced accuracy", 0.75),
    ]
    assert found.closed[0].table.tolist() == [[1, 1, 0], [0, 2, 0]]
    assert found.notes == ()


def test_other_numbers_of_references_are_said() -> None:
    five = evaluate_answers("own", pairs(("yes", ("yes",) * 5)))
    assert five.metrics[0].name == "VQA accuracy"
    assert "these have 5" in five.notes[0]
    two = evaluate_answers("own", pairs(("yes", ("yes",) * 2), ("yes", ("yes",))))
    assert two.metrics[0].name == "exact match"
    assert "no VQA accuracy: some questions have 1 reference answer, it needs 10" in two.notes


def test_a_right_answer_that_fewer_people_gave_counts_as_right_in_the_table() -> None:
    found = evaluate_answers("own", pairs(("2", ("1", "1", "2")), ("1", ("1", "1", "1"))))
    assert found.closed[0].table.tolist() == [[2, 0]]


def test_questions_with_closed_answers_have_tables_of_their_own() -> None:
    rows = []
    for question, answers in {"is it?": ["yes", "no", "yes", "no"], "which?": list("abcd")}.items():
        rows += [
            Pair(
                own=Entry(image=f"{number}.jpg", question=question, texts=(answer,)),
                reference=Entry(image=f"{number}.jpg", question=question, texts=(answer,)),
            )
            for number, answer in enumerate(answers)
        ]
    assert [each.about for each in evaluate_answers("own", rows).closed] == ["is it?"]


def asked(question: str, own: str, wanted: str) -> list[Pair]:
    """Return a pair for each letter of the answers, about images of their own."""
    words = {"y": "yes", "n": "no"}
    return [
        Pair(
            own=Entry(image=f"{at}.jpg", question=question, texts=(words.get(given, given),)),
            reference=Entry(image=f"{at}.jpg", question=question, texts=(words.get(right, right),)),
        )
        for at, (given, right) in enumerate(zip(own, wanted, strict=True))
    ]


def test_a_question_that_is_always_answered_alike_shows_beside_others() -> None:
    result = evaluate_answers("own", asked("is it?", "yyyyy", "ynnny") + asked("which?", "aabbab", "aabbbb"))
    found = {each.about: each for each in result.closed}
    assert [*found] == ["which?", "is it?"]
    assert (found["which?"].warning, 'nearly always "yes"' in found["is it?"].warning) == ("", True)
    assert {metric.name: metric.value for metric in result.metrics} == {
        "exact match": pytest.approx(7 / 11),
        "balanced accuracy, which?": pytest.approx((1 + 3 / 4) / 2),
        "balanced accuracy, is it?": 0.5,
    }
    assert {len(metric.statistics) for metric in result.metrics} == {11}


def test_yes_and_no_are_a_closed_set_among_many_questions() -> None:
    rows = [
        Pair(
            own=Entry(image="a.jpg", question=f"question {number}", texts=("yes",)),
            reference=Entry(image="a.jpg", question=f"question {number}", texts=(wanted,)),
        )
        for number, wanted in enumerate([*("yes", "no") * 5, *(f"answer {at}" for at in range(20))])
    ]
    (found,) = evaluate_answers("own", rows).closed
    assert (found.about, found.table.tolist()) == ("yes/no", [[5, 0, 0], [5, 0, 0]])
    assert found.warning
