"""Training of the models of the package: `blip2cap train` on scenes that are drawn instead of read from files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from blip2cap.train.model.finished import save_checkpoint
from blip2cap.train.model.trainee import Trainee

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


def found_of(data: Any) -> dict[str, Any]:
    """Return the options of scenes, for recipe.toml."""
    return {name.replace("_", "-"): value for name, value in asdict(data).items()}
