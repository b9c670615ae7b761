"""Training of the models of the package: `blip2cap train` on scenes that are drawn instead of read from files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from blip2cap.train.memory import measure_batch
from blip2cap.train.model.base import Base
from blip2cap.train.model.finished import save_checkpoint
from blip2cap.train.model.trainee import Trainee
from blip2cap.train.plan import make_plan
from blip2cap.train.prepare import Prepared, TrainJob
from blip2cap.train.recipe_file import FOUND

Say = Callable[[str], None]


class DrawnTrainee(Trainee):
    """A model of the package in training."""

    def save(self, folder: Path) -> None:
        """Write the weights in bfloat16, as the package has them; the live weights are bfloat16 from here on."""
        self.model.to(torch.bfloat16)
        save_checkpoint(self.base, folder, state=self.model.state_dict())


class Lines:
    """Prints the lines of a training to stderr."""

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=sys.stderr, flush=True)

    def begin(self, num_steps: int, done: int) -> None:
        """Show no bar."""

    def step(self, done: int) -> None:
        """Show no bar."""

    def end(self) -> None:
        """Show no bar."""


def prepared_of(
    job: TrainJob,
    arguments: TrainingArguments,
    *,
    base: Base,
    trainee: Trainee,
    collate: Any,
    train: Any,
    val: Any,
    found: Mapping[str, Any],
    dtype: torch.dtype,
    say: Say,
) -> Prepared:
    """Plan the steps and measure a batch; `found` describes the scenes, for recipe.toml."""
    plan = make_plan(job.loop, num_examples=len(train), num_processes=arguments.world_size)
    batch = collate([train[position] for position in range(plan.device_batch)])
    prepared = Prepared(
        base=base,
        trainee=trainee,
        collate=collate,
        train=train,
        val=val,
        plan=plan,
        memory=measure_batch(trainee, batch, dtype=dtype, part=f"{plan.device_batch} scenes at once"),
        recipe={**job.recipe(), FOUND: {name.replace("_", "-"): value for name, value in found.items()}},
    )
    say(
        f"{len(train)} scenes in an epoch, {len(val or ())} for validation; {plan.num_steps} steps of "
        f"{job.loop.batch_size}; {prepared.num_trainable:,} of {prepared.num_parameters:,} parameters train"
    )
    return prepared
