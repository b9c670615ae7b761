"""Decoded images -> normalised pixels on the device of a model.

Shapes: B = images, H, W = pixels, C = channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from blip2cap.decode.image import Pixels


class PixelInput:
    """Gathers images of one size, copies them to the device and normalises them there."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.device, self.dtype = device, dtype
        std_311 = torch.tensor(std, device=device).view(3, 1, 1)
        # (pixels / 255 - mean) / std in two passes over the pixels.
        self._scale, self._shift = 1 / (255 * std_311), torch.tensor(mean, device=device).view(3, 1, 1) / std_311
        self._largest_batch = 0

    def normalise(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """Return the input of the vision encoder, [B, C, H, W]."""
        pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float().mul_(self._scale).sub_(self._shift)
        return pixels_BCHW.to(self.dtype)

    def copy(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Gather images, uint8 [H, W, C] each, in one buffer on the device, [B, H, W, C].

        For a GPU it is pinned, and a short batch is filled up with black images.
        """
        if self.device.type == "cpu":
            return torch.from_numpy(np.stack(images))
        # Kernels are planned for each number of images: few numbers occur, and a given batch size is one of them.
        self._largest_batch = max(self._largest_batch, len(images))
        num_images = min(1 << (len(images) - 1).bit_length(), self._largest_batch)
        # torch reuses pinned memory, but only when the GPU has read it.
        staged = torch.empty((num_images, *images[0].shape), dtype=torch.uint8, pin_memory=True)
        np.stack(images, out=staged[: len(images)].numpy())
        staged[len(images) :] = 0
        return staged.to(self.device, non_blocking=True)
