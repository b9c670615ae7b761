"""What a run needs of a model, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from blip2cap.errors import ImageError
from blip2cap.options import GenerateOptions
from blip2cap.records import Generated, Prompt

Result: TypeAlias = list[Generated] | ImageError
"""Texts, best first, or why there are none."""


class Session(Protocol):
    """Prompts are added as their images are encoded; results come by ticket, in any order."""

    @property
    def capacity(self) -> int:
        """Number of prompts processed at once, at most."""

    @property
    def num_pending(self) -> int:
        """Number of prompts that wait or run."""

    def add(self, features: Any, prompts: Sequence[Prompt]) -> list[int]:
        """Queue prompts about images whose features these are; return a ticket for each."""

    def advance(self) -> list[tuple[int, Result]]:
        """Compute for a while; return the results that are complete, by ticket."""


class Model(Protocol):
    """A loaded model."""

    on_cpu: bool
    """Whether it computes on the cores that images are decoded on."""

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""

    def encode(self, images: Sequence[Any]) -> Any:
        """Run the vision encoder on decoded images. Raises MemoryError if they do not fit."""

    def wait(self) -> None:
        """Wait until the device has finished what it was given."""

    def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> Session:
        """Open a session that generates text; None lets the model choose its capacity."""
