"""The interface between the training loop and a model that it trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

BatchT = TypeVar("BatchT", bound=tuple[torch.Tensor, ...])


class Recipe(Protocol[BatchT]):
    """A model in training: its weights, data, losses and evaluation. All are functions of seeds and of the step."""

    modules: Mapping[str, nn.Module]
    """Every module with trained parameters, by its name in the checkpoint; the loop moves them to the device."""
    loss_weights: Mapping[str, float]
    """Weight of each loss in the sum that is minimised."""
    autocast: torch.dtype | None
    """Type of the matrix products, or None for that of the weights."""

    def batches(self, steps: range, num_workers: int) -> Iterable[BatchT]:
        """Load the batches of `steps` in order; `num_workers` processes prepare them in advance."""
        ...

    def losses(self, batch: BatchT, step: int) -> Mapping[str, torch.Tensor]:
        """Return a scalar for each name in `loss_weights`."""
        ...

    def evaluate(self, folder: Path) -> Mapping[str, Any]:
        """Return figures on unseen scenes, for the log; `folder` is that of the run."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model as plain transformers loads it, with its processor; training ends here."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Return the options of the recipe, for training.json."""
        ...
