"""What tests of training data share: the tokenizers of small checkpoints, and samples."""

from __future__ import annotations

from pathlib import Path

import torch

from blip2cap.options import ModelOptions
from blip2cap.train.data.dataset import Sample
from blip2cap.train.data.text_base import TokenizerBase, read_tokenizers
from tests.checkpoints import IMAGE_SIZE


def read_base(folder: Path | str) -> TokenizerBase:
    """Read the tokenizers of a small checkpoint."""
    return read_tokenizers(ModelOptions(name=str(folder)))


def make_sample(
    target: str, question: str | None = None, *, seed: int = 0, image: int = 0, size: int = IMAGE_SIZE
) -> Sample:
    """Make a sample with random pixels."""
    pixels = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Sample(pixels=pixels, question=question, target=target, index=0, image=image)
