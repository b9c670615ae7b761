"""A device that takes the same time for every image, and no processor: for worker processes, which load it by name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blip2cap.decode.inputs import ImageInput, SquareInput
from tests.fakes import FakeModel

IMAGE_S = 0.025


@dataclass(frozen=True)
class Sleeper:
    """Loads a model that sleeps."""

    def image_input(self) -> ImageInput:
        """Return small squares."""
        return SquareInput(8)

    def load(self, device: str, dtype: str) -> SleepingModel:
        """Load it."""
        return SleepingModel()


class SleepingModel(FakeModel):
    """A device that takes the same time for every image, and no processor."""

    on_cpu = False

    def encode(self, images: Sequence[Any]) -> list[str]:
        """Sleep."""
        time.sleep(IMAGE_S * len(images))
        return super().encode(images)
