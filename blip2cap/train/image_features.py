"""Outputs of a frozen vision encoder, each computed once and kept in a file: later epochs only read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from blip2cap.train.pixels import normalise


class ImageFeatures:
    """Features of `num_images` images by index, float16 [P, D] each; the file grows with use and may be deleted."""

    def __init__(
        self,
        path: Path,
        encoder: nn.Module,
        pixels_of: Callable[[int], np.ndarray],
        *,
        num_images: int,
        shape: tuple[int, int],
    ) -> None:
        """`pixels_of` returns the pixels of an image by index; uint8 [H, W, 3]."""
        self.encoder, self.pixels_of = encoder, pixels_of
        path.parent.mkdir(parents=True, exist_ok=True)
        size = num_images * shape[0] * shape[1] * np.dtype(np.float16).itemsize
        if not path.exists() or path.stat().st_size != size:
            with open(path, "wb") as file:
                file.truncate(size)  # zeros, without using disk space
        self._stored = np.memmap(path, dtype=np.float16, mode="r+", shape=(num_images, *shape))

    @torch.no_grad()
    def __call__(self, indices: Sequence[int]) -> torch.Tensor:
        """Return features [B, P, D], the same for the first and any later call."""
        # The output of an encoder is not zero: the first value of an image, written last, tells whether it is stored.
        missing = [index for index in indices if not self._stored[index, 0, 0]]
        if missing:
            pixels_BCHW = torch.from_numpy(np.stack([self.pixels_of(index) for index in missing])).permute(0, 3, 1, 2)
            features = self.encoder(normalise(pixels_BCHW)).last_hidden_state.to(torch.float16).numpy()
            self._stored[missing, 1:] = features[:, 1:]
            self._stored[missing, 0, 1:] = features[:, 0, 1:]
            self._stored[missing, 0, 0] = features[:, 0, 0]
        return torch.from_numpy(self._stored[list(indices)])
