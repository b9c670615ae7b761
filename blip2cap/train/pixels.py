"""Pixels of drawn scenes, normalised as CLIP's preprocessing does."""

from __future__ import annotations

import torch
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


def normalise(pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Return uint8 pixels as float32 with CLIP's mean and standard deviation."""
    pixels_BCHW = pixels_BCHW.float() / 255
    mean = pixels_BCHW.new_tensor(OPENAI_CLIP_MEAN).view(1, 3, 1, 1)
    std = pixels_BCHW.new_tensor(OPENAI_CLIP_STD).view(1, 3, 1, 1)
    return (pixels_BCHW - mean) / std
