"""The session of a task whose results are vectors: they are complete when an image is encoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from blip2cap.errors import UsageError
from blip2cap.models.blip2.transfer import HostCopy
from blip2cap.records import Prompt

_CAPACITY = 128
"""Largest number of vectors on their way to the host."""


class EmbedSession:
    """Vectors of the images of one run. The result of a ticket is a numpy array of float32.

    `embed` turns images into a tensor with the vectors of each. On a GPU the vectors of a batch are read when the next
    one is queued, so that the device never waits for the host.
    """

    num_ahead = 0

    def __init__(
        self, embed: Callable[[Sequence[Any]], torch.Tensor], *, capacity: int | None, reads_late: bool
    ) -> None:
        self.embed, self.capacity, self.reads_late = embed, capacity or _CAPACITY, reads_late
        self._copies: deque[tuple[list[tuple[int, int]], HostCopy]] = deque()
        """Tickets with the indices of their images, and the vectors of the batch."""
        self._num_added = 0
        self._is_new = False
        """True if the last batch was added after the last `advance`."""

    @property
    def num_pending(self) -> int:
        """Number of vectors that were not returned yet."""
        return sum(len(tickets) for tickets, _ in self._copies)

    def encode(self, images: Sequence[Any]) -> torch.Tensor:
        """Return the vectors of images. Raises MemoryError if they do not fit."""
        return self.embed(images)

    def add(self, features: torch.Tensor, prompts: Sequence[Prompt]) -> list[int]:
        """Begin to copy the vectors to the host; return a ticket for each prompt. The texts of prompts are ignored."""
        tickets = list(range(self._num_added, self._num_added + len(prompts)))
        self._num_added += len(prompts)
        pairs = [(ticket, prompt.image) for ticket, prompt in zip(tickets, prompts, strict=True)]
        self._copies.append((pairs, HostCopy(features)))
        self._is_new = True
        return tickets

    def close(self) -> None:
        """Do nothing."""

    def advance(self) -> list[tuple[int, np.ndarray[Any, np.dtype[np.float32]]]]:
        """Return the vectors of the oldest batch, by ticket."""
        waits, self._is_new = self._is_new and self.reads_late and len(self._copies) == 1, False
        if waits or not self._copies:
            return []
        tickets, copy = self._copies.popleft()
        vectors = copy.numpy()
        # Copies: a view that somebody keeps would keep the vectors of the whole batch.
        return [(ticket, vectors[image].copy()) for ticket, image in tickets]


def check_what(what: str, known: Sequence[str], *, hint: str = "") -> None:
    """Raise UsageError for vectors that a model does not have."""
    if what not in known:
        raise UsageError(f"--what {what}: this model has {' and '.join(known)}.{hint and ' '}{hint}")


def normalise(vectors: torch.Tensor) -> torch.Tensor:
    """Return float32 vectors of length 1 in the last dimension."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
