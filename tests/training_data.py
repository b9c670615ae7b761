"""Stand-ins for training: what collators need of a model, and samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from blip2cap.models import checkpoint as checkpoints
from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2.load import tokenizer_of
from blip2cap.options import ModelOptions
from blip2cap.train.data.dataset import Sample
from tests.checkpoints import IMAGE_SIZE


@dataclass(frozen=True)
class FakeBase:
    """The tokenizers of a checkpoint."""

    checkpoint: Checkpoint
    tokenizer: Any
    qformer_tokenizer: Any
    image_token_id: int | None
    num_queries: int = 4
    mean: Sequence[float] = tuple(OPENAI_CLIP_MEAN)
    std: Sequence[float] = tuple(OPENAI_CLIP_STD)


def read_base(folder: Path | str) -> FakeBase:
    """Read a small checkpoint."""
    found = checkpoints.find(ModelOptions(name=str(folder)))
    qformer = found.family == "instructblip"
    return FakeBase(
        checkpoint=found,
        tokenizer=tokenizer_of(found, "qformer" if found.family == "matching" else "text", found.folder),
        qformer_tokenizer=tokenizer_of(found, "qformer", found.folder / "qformer_tokenizer") if qformer else None,
        image_token_id=found.config.get("image_token_index"),
        num_queries=int(found.config["num_query_tokens"]),
    )


def make_sample(
    target: str, question: str | None = None, *, seed: int = 0, image: int = 0, size: int = IMAGE_SIZE
) -> Sample:
    """Make a sample with random pixels."""
    pixels = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Sample(pixels=pixels, question=question, target=target, index=0, image=image)


Checkpoints = Callable[[str], Path]
