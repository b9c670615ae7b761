"""Messages between a run and its workers, pickled, through a socket.

To a worker: a `Setup`, then lists of `Item`, and LAST after which no item follows for now, or STOP. From a worker: what
its class says. A list of items that a worker begins to take is answered with `Taken`, and the next one is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from blip2cap.decode.inputs import ImageInput
from blip2cap.errors import Blip2CapError
from blip2cap.models.base import Checkpoint, Model
from blip2cap.models.registry import FAMILIES, load
from blip2cap.options import BatchOptions, DecodeOptions, ModelOptions
from blip2cap.tasks.base import Request, Task

LAST = "last"
"""No item follows for now: complete the images without waiting for more."""
STOP = "stop"
"""Complete the images in the model, and drop the others."""


class Loader(Protocol):
    """Loads the model of a run in a worker."""

    def image_input(self) -> ImageInput:
        """Return the form in which the model takes images, which is known before it is loaded."""

    def load(self, device: str, dtype: str) -> Model:
        """Load it. Raises Blip2CapError."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointLoader:
    """Loads a checkpoint that was found."""

    checkpoint: Checkpoint
    options: ModelOptions

    def image_input(self) -> ImageInput:
        """Return the form in which the family of the checkpoint takes images."""
        return FAMILIES[self.checkpoint.family].image_input(self.checkpoint, self.options)

    def load(self, device: str, dtype: str) -> Model:
        """Load the checkpoint. Raises Blip2CapError."""
        return load(self.checkpoint, replace(self.options, device=device, dtype=dtype))


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """Everything that a worker needs to know before the first image."""

    loader: Loader
    device: str
    dtype: str
    task: Task
    decode: DecodeOptions
    batch: BatchOptions


@dataclass(frozen=True, slots=True)
class Item:
    """One image for a worker, with its missing rows."""

    number: int
    """Number of the image in the run."""
    request: Request
    suspected: bool
    """True if it may have ended a process: it is decoded in a separate one."""
    slots: tuple[str, int]
    """File in which it is recorded while it is decoded, and the worker's first slot there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The model is loaded."""

    dtype: str
    fallback_reason: str
    remark: str


@dataclass(frozen=True, slots=True)
class Taken:
    """The worker has begun to take the oldest of the lists that it had not begun."""


@dataclass(frozen=True, slots=True)
class Alive:
    """The model works: sent about every second while it does."""


@dataclass(frozen=True, slots=True)
class Result:
    """The rows of one image."""

    number: int
    rows: Sequence[dict[str, Any]]
    """Columns of each row."""
    failures: Sequence[tuple[str, str]]
    """Codes and details of what failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Results in the order of the worker's items, and times since the last ones."""

    results: Sequence[Result]
    decode_s: float
    model_s: float
    batch_size: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Said:
    """A line for the user."""

    line: str


@dataclass(frozen=True, slots=True)
class Idle:
    """The worker has completed all items before LAST, or all that it did not drop after STOP."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The worker ends because of an error that is not that of an image."""

    error: Blip2CapError | None
    """None for an error that is not one of ours, such as one of a driver."""
    detail: str
    """One line about it."""
