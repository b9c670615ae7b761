"""Confidence intervals of metrics: the percentile bootstrap over items (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from blip2cap.evaluate.metric import Floats, Metric

NUM_SAMPLES = 1000
"""Number of samples of the items, each of as many items, drawn with replacement."""
LEVEL = 0.95
_SEED = 0
_BLOCK = 1 << 22
"""Largest number of weights in memory at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A value with the interval that holds it in 95 of 100 samples."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The value of a run minus that of another one, over the same samples of the same items."""

    name: str
    value: float
    other: float
    difference: float
    low: float
    high: float
    p: float
    """Share of samples in which the difference has the other sign, or is 0, doubled; at least 2 / samples."""


def scores(metrics: Sequence[Metric]) -> list[Score]:
    """Return the values of metrics of the same items, with their intervals."""
    found = []
    for metric, values in zip(metrics, _values(metrics), strict=True):
        low, high = _interval(values)
        found.append(Score(name=metric.name, value=metric.value, low=low, high=high))
    return found


def differences(metrics: Sequence[Metric], others: Sequence[Metric]) -> list[Difference]:
    """Return the differences of metrics to the same metrics of another run over the same items."""
    values = _values([*metrics, *others])
    found = []
    for at, (metric, other) in enumerate(zip(metrics, others, strict=True)):
        assert metric.name == other.name
        assert len(metric.statistics) == len(other.statistics), "not the same items"
        changes = values[at] - values[len(metrics) + at]
        low, high = _interval(changes)
        tail = min(int((changes <= 0).sum()), int((changes >= 0).sum()))
        found.append(
            Difference(
                name=metric.name,
                value=metric.value,
                other=other.value,
                difference=metric.value - other.value,
                low=low,
                high=high,
                p=min(1.0, 2 * max(tail, 1) / NUM_SAMPLES),
            )
        )
    return found


def _values(metrics: Sequence[Metric]) -> Floats:
    """Return the value of each metric in each sample, [metrics, samples]; all have the same samples."""
    values = np.empty((len(metrics), NUM_SAMPLES))
    start = 0
    for weights in _weights(len(metrics[0].statistics)) if metrics else ():
        for row, metric in zip(values, metrics, strict=True):
            sums = weights @ metric.statistics
            row[start : start + len(weights)] = [metric.combine(each) for each in sums]
        start += len(weights)
    return values


def _weights(num_items: int) -> Iterator[Floats]:
    """Yield how often each item is in each sample, [some samples, num_items]."""
    rng = np.random.default_rng(_SEED)
    at_once = max(1, min(NUM_SAMPLES, _BLOCK // num_items))
    for start in range(0, NUM_SAMPLES, at_once):
        num = min(at_once, NUM_SAMPLES - start)
        drawn = (np.bincount(rng.integers(num_items, size=num_items), minlength=num_items) for _ in range(num))
        yield np.stack([*drawn]).astype(np.float64)


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
