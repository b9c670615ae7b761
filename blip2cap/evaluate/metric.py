"""A metric with what a bootstrap needs: its value over any sample of the items, without scoring them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric over all items."""

    name: str
    """As it is printed: "CIDEr-D"."""
    value: float
    """Over all items."""
    per_item: Floats | None
    """Score of each item alone, [items]; None if the metric has none. Its mean need not be `value`: see BLEU."""
    statistics: Floats
    """Numbers of each item that are summed over items, [items, statistics]."""
    combine: Callable[[Floats], float]
    """Sums of the statistics, [statistics] -> value."""

    def resample(self, indices: Integers) -> float:
        """Return the value over these items, [sample]; an item that is there twice counts twice."""
        times = np.bincount(indices, minlength=len(self.statistics)).astype(np.float64)
        return self.combine(times @ self.statistics)


def make_metric(
    name: str, statistics: Floats, combine: Callable[[Floats], float], per_item: Floats | None = None
) -> Metric:
    """Make a metric whose value is a function of sums over items."""
    value = combine(statistics.sum(axis=0))
    return Metric(name=name, value=value, per_item=per_item, statistics=statistics, combine=combine)


def make_mean(name: str, per_item: Floats) -> Metric:
    """Make a metric that is the mean of the scores of its items."""
    statistics = np.stack([per_item, np.ones_like(per_item)], axis=1)
    return make_metric(name, statistics, _ratio, per_item)


def _ratio(sums: Floats) -> float:
    return float(sums[0] / sums[1])
