"""Learning rates by step."""

from __future__ import annotations

import math

import pytest
import torch

from blip2cap.train.model.schedule import learning_rate_at, make_schedule
from blip2cap.train.options.model import OptimOptions


def rates(options: OptimOptions, num_steps: int, steps_per_epoch: int = 10) -> list[float]:
    return [
        learning_rate_at(step, options, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
        for step in range(num_steps)
    ]


def test_a_cosine_falls_with_every_step_after_the_warm_up() -> None:
    options = OptimOptions(learning_rate=1.0, min_learning_rate=0.1, warmup_steps=4, warmup_learning_rate=0.2)
    found = rates(options, 20)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[12] == pytest.approx(0.55)  # in the middle of 16 steps
    assert found[4:] == sorted(found[4:], reverse=True)
    assert found[19] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert learning_rate_at(25, options, num_steps=20, steps_per_epoch=10) == pytest.approx(0.1)


def test_lavis_falls_with_every_epoch_and_warms_up_in_the_first() -> None:
    options = OptimOptions(learning_rate=1.0, min_learning_rate=0.2, warmup_steps=5, schedule="lavis")
    found = rates(options, 40)
    assert found[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5:10] == [1.0] * 5
    for epoch in (1, 2, 3):
        rate = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * epoch / 4))
        assert found[10 * epoch : 10 * epoch + 10] == pytest.approx([rate] * 10)
    long = rates(OptimOptions(learning_rate=1.0, warmup_steps=15, schedule="lavis"), 20)
    assert long[9] == pytest.approx(9 / 15)
    assert long[10] == pytest.approx(0.5), "the warm-up ends with the first epoch, finished or not"


def test_a_constant_rate_only_warms_up() -> None:
    options = OptimOptions(learning_rate=2.0, warmup_steps=2, schedule="constant")
    assert rates(options, 5) == [0.0, 1.0, 2.0, 2.0, 2.0]


def test_the_warm_up_takes_a_twentieth_of_the_steps_if_not_given() -> None:
    found = rates(OptimOptions(learning_rate=1.0), 100)
    assert [*map(round, found[:5], [3] * 5)] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert found[5] == 1.0
    assert rates(OptimOptions(learning_rate=1.0, warmup_steps=0), 3)[0] == 1.0


def test_every_group_follows_from_its_own_peak() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.5, 0.25)]
    optimiser = torch.optim.AdamW(groups)
    schedule = make_schedule(
        optimiser, OptimOptions(learning_rate=0.5, warmup_steps=2), num_steps=10, steps_per_epoch=5
    )
    found = []
    for _ in range(4):
        found.append([group["lr"] for group in optimiser.param_groups])
        optimiser.step()
        schedule.step()
    assert [low / high for high, low in found[1:]] == pytest.approx([0.5] * 3)
    assert [high for high, _ in found[:3]] == pytest.approx([0.0, 0.25, 0.5])
