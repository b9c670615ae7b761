"""Result of an evaluation: items with their texts, and metrics over all and over groups of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from blip2cap.evaluate.closed import Closed
from blip2cap.evaluate.metric import Floats, Metric
from blip2cap.records import ImageRef


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One caption, answer or image that was evaluated."""

    image: str
    """Name of the image."""
    question: str = ""
    text: str
    """The caption or the answer; of a search, the text that came first."""
    references: tuple[str, ...]
    """The right texts; () without references."""
    note: str = ""
    """Explanation of the score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Some of the items, with the same metric as all."""

    kind: str
    """Property that all items of the group share: answer type, question type."""
    name: str
    metric: Metric


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Result of one output."""

    given: str
    noun: str
    """Word for an item in messages: caption, answer or image."""
    items: tuple[Item, ...]
    metrics: tuple[Metric, ...]
    """Over all items, in the order of `items`."""
    score_name: str
    """Name of the scores of single items, by which the worst are chosen."""
    item_scores: Floats
    """Score of each item, [items]."""
    perfect: float = math.inf
    """Highest score that an item can have: such an item is not among the worst."""
    groups: tuple[Group, ...] = ()
    closed: tuple[Closed, ...] = ()
    notes: tuple[str, ...] = ()
    """Messages that belong to the result."""
    refs: tuple[ImageRef, ...] = ()
    """The images of the items, where they are known already."""

    def worst(self, count: int) -> list[tuple[Item, float, int]]:
        """Return the items with the lowest scores, with their scores and positions; of equal ones, the first.

        Items with a perfect score are left out, so there may be fewer.
        """
        order = np.argsort(self.item_scores, kind="stable")[:count]
        found = [(self.items[at], float(self.item_scores[at]), int(at)) for at in order]
        return [each for each in found if each[1] < self.perfect]
