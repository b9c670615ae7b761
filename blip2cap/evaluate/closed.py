"""Answers from a closed set, such as yes and no: balanced accuracy, and which answer was given for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from blip2cap.evaluate.metric import Floats, Integers, Metric, make_metric

BALANCED = "balanced accuracy"
MOST_ANSWERS = 10
"""Most different answers of a closed set: a larger table is not read."""
_LEAST_QUESTIONS = 2
"""Least number of questions for each answer, on average: fewer are a list of different answers."""
_ONE_SIDED, _FAR = 0.9, 0.1
"""A run is one-sided if it gives one answer at least this often, and more often than the references by so much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Closed:
    """Answers to questions whose references are of a closed set."""

    about: str
    """Name of the group of questions: "all", an answer type or a question."""
    answers: tuple[str, ...]
    """The answers of the references, the most frequent first."""
    others: tuple[str, ...]
    """Answers of the run that are none of these, the most frequent first."""
    table: Integers
    """Number of questions by answer of the reference (rows: `answers`) and of the run (columns: `answers`, then one for
    all `others`)."""
    balanced_accuracy: Metric
    """Mean, over the answers of the references, of the share of their questions that are answered right.

    Its items are all that are evaluated; those that are not in the table count nothing."""

    @property
    def num_questions(self) -> int:
        """Number of questions."""
        return int(self.table.sum())

    @property
    def always(self) -> float:
        """Share of questions that are answered right by always giving the answer that references have most often."""
        return float(self.table[0].sum() / self.table.sum())

    @property
    def warning(self) -> str:
        """Message about a run that gives nearly always one answer, or references that have only one; else ""."""
        columns = self.table.sum(axis=0)[: len(self.answers)]
        most = int(columns.argmax())
        answer, total = self.answers[most], self.num_questions
        share, wanted = columns[most] / total, self.table[most].sum() / total
        if len(self.answers) == 1:
            return f'every reference is "{answer}": an output that always says so would be right'
        if share < _ONE_SIDED or share < wanted + _FAR:
            return ""
        return (
            f'nearly always "{answer}": the answer to {columns[most]:,} of {total:,} questions, the reference of '
            f"{self.table[most].sum():,}"
        )


def make_closed(
    about: str, own: Sequence[str], wanted: Sequence[str], right: Floats, indices: Integers, num_items: int
) -> Closed | None:
    """Compare answers with references, both normalised; None if the references are not of a closed set.

    `right` is 1 where an answer counts as right, which may be one of several references. `indices` are the positions of
    the questions among the `num_items` that are evaluated.
    """
    counts = Counter(wanted)
    if len(counts) > MOST_ANSWERS or len(wanted) < _LEAST_QUESTIONS * len(counts):
        return None
    answers = tuple(answer for answer, _ in counts.most_common())
    rows = np.array([answers.index(each) for each in wanted])
    # Where another than the most frequent reference was given, and is right, it counts for the frequent one.
    given = [row if good else _position(answers, each) for row, each, good in zip(rows, own, right, strict=True)]
    table = np.zeros((len(answers), len(answers) + 1), np.int64)
    np.add.at(table, (rows, np.array(given)), 1)
    statistics = np.zeros((num_items, 2 * len(answers)))
    statistics[indices, rows] = right
    statistics[indices, len(answers) + rows] = 1
    overall = np.array([right[rows == row].mean() for row in range(len(answers))])
    name = BALANCED if len(rows) == num_items else f"{BALANCED}, {about}"
    others = Counter(each for each, place in zip(own, given, strict=True) if place == len(answers))
    return Closed(
        about=about,
        answers=answers,
        others=tuple(answer for answer, _ in others.most_common()),
        table=table,
        balanced_accuracy=make_metric(name, statistics, partial(_balanced, overall)),
    )


def _position(answers: Sequence[str], answer: str) -> int:
    return answers.index(answer) if answer in answers else len(answers)


def _balanced(overall: Floats, sums: Floats) -> float:
    """Return the mean, over answers, of the share of right ones; of an answer that a sample lacks, that overall."""
    right, count = np.split(sums, 2)
    return float(np.where(count > 0, right / np.maximum(count, 1), overall).mean())
