"""Options of what is trained, and of the optimiser, are checked where they are made."""

from __future__ import annotations

import math
from typing import Any

import pytest

from blip2cap.errors import UsageError
from blip2cap.train.options.model import OptimOptions, TuneOptions


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("--train lm: must be one of qformer, vision, llm, lora, all", {"train": ("lm",)}),
        ("--train is empty", {"train": ()}),
        ("--train lora and --train llm exclude each other", {"train": ("lora", "llm")}),
        ("--train lora and --train all exclude each other", {"train": ("all", "lora")}),
        ("--lora-targets fc1 has no effect without --train lora", {"lora_targets": ("fc1",)}),
        ("--lora-rank 0: must be 1 or more", {"lora_rank": 0}),
        ("--lora-dropout 1: must be from 0 to below 1", {"lora_dropout": 1.0}),
        ("--image-size 0: must be 1 or more", {"image_size": 0}),
    ],
)
def test_wrong_parts_are_refused(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        TuneOptions(**options)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("--learning-rate 0: must be a number above 0", {"learning_rate": 0.0}),
        ("--learning-rate nan: must be a number above 0", {"learning_rate": math.nan}),
        ("--min-learning-rate 0.1: must be at most --learning-rate 1e-05", {"min_learning_rate": 0.1}),
        ("--warmup-learning-rate 0.1: must be at most --learning-rate 1e-05", {"warmup_learning_rate": 0.1}),
        ("--warmup-steps -1: must be 0 or more", {"warmup_steps": -1}),
        ("--schedule linear: must be one of cosine, lavis, constant", {"schedule": "linear"}),
        ("--weight-decay -1: must be 0 or more", {"weight_decay": -1}),
        ("--beta2 1: must be between 0 and 1", {"beta2": 1.0}),
        ("--clip-norm -1: must be 0 or more", {"clip_norm": -1}),
        ("--vision-layer-decay 0: must be above 0, and at most 1", {"vision_layer_decay": 0.0}),
    ],
)
def test_wrong_rates_are_refused(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        OptimOptions(**options)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("stage", "part", "reason"),
    [
        ("stage1", "llm", "its model has no language model. Expected qformer, vision, all"),
        ("stage1", "lora", "its model has no language model"),
        ("stage2", "vision", "vision encoder and language model stay frozen"),
        ("stage2", "all", "vision encoder and language model stay frozen"),
    ],
)
def test_a_stage_trains_what_it_has(stage: str, part: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        TuneOptions(train=(part,)).check_stage(stage)
    assert caught.value.message.startswith(f"--train {part}: not in {stage}: {reason}")


def test_stage_1_starts_from_no_other_stage_1() -> None:
    with pytest.raises(UsageError, match="qformer_from RUN: not in stage1"):
        TuneOptions(qformer_from="RUN").check_stage("stage1")


def test_every_part_fits_fine_tuning() -> None:
    for part in ("qformer", "vision", "llm", "lora", "all"):
        for stage in ("caption", "vqa"):
            TuneOptions(train=(part,)).check_stage(stage)
    assert TuneOptions(train=("all",)).parts == {"qformer", "vision", "llm"}
