"""Intervals and differences by bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from blip2cap.evaluate import bootstrap
from blip2cap.evaluate.metric import make_mean, make_metric


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    (score,) = bootstrap.scores([make_mean("mean", values)])
    error = values.std() / np.sqrt(400)
    assert score.value == pytest.approx(values.mean())
    assert (score.low, score.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.05
    )


def test_intervals_are_the_same_every_time_and_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (make_mean(name, np.random.default_rng(seed).random(50)) for seed, name in enumerate("ab"))
    together = bootstrap.scores([first, second])
    assert together == [*bootstrap.scores([first]), *bootstrap.scores([second])]
    monkeypatch.setattr(bootstrap, "_BLOCK", 170)
    assert bootstrap.scores([first, second]) == together


def test_samples_are_those_of_the_metric_itself() -> None:
    sizes = np.random.default_rng(2).integers(1, 9, 30).astype(float)
    ratio = make_metric("ratio", np.stack([sizes, sizes**2], axis=1), lambda sums: float(sums[1] / sums[0]))
    rng = np.random.default_rng(0)
    values = [ratio.resample(rng.integers(30, size=30)) for _ in range(bootstrap.NUM_SAMPLES)]
    (score,) = bootstrap.scores([ratio])
    assert (score.low, score.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_a_small_but_steady_difference_is_found_by_pairs() -> None:
    values = np.random.default_rng(3).random(100)
    better, worse = make_mean("mean", values + 0.01), make_mean("mean", values)
    (found,) = bootstrap.differences([better], [worse])
    assert found.difference == pytest.approx(0.01)
    assert (found.low, found.high) == pytest.approx((0.01, 0.01))
    assert found.p == pytest.approx(0.002)
    (back,) = bootstrap.differences([worse], [better])
    assert [back.difference, back.p] == pytest.approx([-0.01, 0.002])


def test_equal_runs_do_not_differ() -> None:
    metric = make_mean("mean", np.random.default_rng(4).random(20))
    (found,) = bootstrap.differences([metric], [metric])
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
