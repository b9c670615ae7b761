"""Examples -> pixels and the text to learn, read and decoded as a run does.

S = side of the square input of the model, in pixels.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from blip2cap.decode.image import decode
from blip2cap.decode.read import read
from blip2cap.errors import ImageError, InputError
from blip2cap.models.blip2.resize import choose_resizer
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from blip2cap.train.data.example import DataSet, Example
from blip2cap.train.data.mix import Indices, epoch_length, epoch_order

_OF_STORAGE = ("unreadable", "unreachable", "timeout")
"""Reasons that may pass: an image that could be read once is tried again."""
_RETRY_S = (1.0, 5.0, 20.0)
"""Waits before it is, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One example of an epoch."""

    pixels: torch.Tensor
    """uint8 RGB [3, S, S]"""
    question: str | None
    """None: the target is a caption."""
    target: str
    """Text to learn."""
    index: int
    """Index of the example in its set."""
    image: int
    """Number of the image: examples with the same file have the same."""


class TrainDataset(Dataset[Sample]):
    """The samples of an epoch in their order; a sampler must not shuffle them again.

    With `shuffle`, epochs differ, and sets are mixed by weight; without it, as for validation, every epoch has all
    examples in the order of their files, and the most common answer of each. Worker processes see `set_epoch` also if
    they live longer than an epoch.
    """

    def __init__(
        self,
        data: DataSet,
        image_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        decode: DecodeOptions | None = None,
    ) -> None:
        self.data, self.image_size, self.seed, self.shuffle = data, image_size, seed, shuffle
        self.decode_options = decode or DecodeOptions()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._order: tuple[int, Indices] | None = None
        numbers: dict[str, int] = {}
        self._image_numbers = [numbers.setdefault(each.path, len(numbers)) for each in data.examples]

    def __len__(self) -> int:
        return epoch_length(self.data.shares) if self.shuffle else len(self.data.examples)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that samples are of, counted from 0."""
        self._epoch.fill_(epoch)

    def __getitem__(self, position: int) -> Sample:
        """Return a sample of the current epoch. Raises InputError if its image cannot be read."""
        epoch = int(self._epoch)
        index = position
        if self.shuffle:
            if self._order is None or self._order[0] != epoch:
                self._order = epoch, epoch_order(self.data.shares, seed=self.seed, epoch=epoch)
            index = int(self._order[1][position])
        example = self.data.examples[index]
        return Sample(
            pixels=self._pixels(example),
            question=example.question,
            target=self._target(example, f"{self.seed} {epoch} {position}") if self.shuffle else example.most_common,
            index=index,
            image=self._image_numbers[index],
        )

    def _target(self, example: Example, name: str) -> str:
        """Draw one of the texts; `name` seeds the draw, whatever process makes it."""
        if len(example.texts) == 1:
            return example.texts[0]
        return random.Random(name).choices(example.texts, example.weights)[0]

    def _pixels(self, example: Example) -> torch.Tensor:
        ref = ImageRef(path=example.path, name=example.name)
        for wait_s in (*_RETRY_S, None):
            try:
                data = read(ref, self.decode_options)
                image = decode(data, self.image_size, self.decode_options, choose_resizer())
            except ImageError as error:  # its class could not travel from a worker process of torch
                if error.code not in _OF_STORAGE or wait_s is None:
                    raise InputError(
                        f"{example.where}: {example.path}: {error.code}: {error.detail}. All images could be read "
                        "before the first step. Restore it, then start the same command again: it continues."
                    ) from None
                time.sleep(wait_s)
            else:
                break
        return torch.from_numpy(np.ascontiguousarray(image.pixels_HWC.transpose(2, 0, 1)))
