"""Training scenes -> batches of image features with a true and a false text each, and what is true of what.

Batch number `step` is a function of the options and `step` alone, so a resumed run gets the same batches.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import BertTokenizer, Blip2VisionModel

from blip2cap.tiny.scenes import TRAINING_SEEDS, draw
from blip2cap.train.image_features import ImageFeatures
from blip2cap.train.stage1 import Batch
from blip2cap.train.statements import changed, full, shorter
from blip2cap.train.tiny import IMAGE_SIZE, PATCH_SIZE


@dataclass(frozen=True, kw_only=True, slots=True)
class PairOptions:
    """Composition of the batches of images and texts."""

    batch_size: int = 32
    num_scenes: int = 16_000
    """Scenes of an epoch; each epoch has its own order and texts."""
    shorter_share: float = 0.3
    """Share of texts that leave out some of the caption, as people search: "a boat on the sea"."""
    photo_share: float = 0.05
    """Share of texts that begin with "a photo of"."""


class PairBatches(Dataset[Batch]):
    """Training batches by step number."""

    def __init__(self, tokenizer: BertTokenizer, encoder: Blip2VisionModel, cache: Path, options: PairOptions) -> None:
        """`cache` is a file for the outputs of `encoder`, the frozen vision encoder."""
        self.tokenizer = tokenizer
        self.options = options
        shape = (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1, encoder.config.hidden_size
        self.features = ImageFeatures(cache, encoder, _pixels, num_images=options.num_scenes, shape=shape)

    def __getitem__(self, step: int) -> Batch:
        size = self.options.batch_size
        positions = [divmod(place, self.options.num_scenes) for place in range(step * size, (step + 1) * size)]
        orders = {epoch: _order(epoch, self.options.num_scenes) for epoch, _ in positions}
        chosen = [(epoch, int(orders[epoch][index])) for epoch, index in positions]
        scenes = [draw(TRAINING_SEEDS[index], (16, 16)) for _, index in chosen]
        statements, texts, wrong_texts = [], [], []
        for (epoch, index), scene in zip(chosen, scenes, strict=True):
            rng = random.Random(f"pairs {epoch} {index}")
            statement = shorter(rng, scene) if rng.random() < self.options.shorter_share else full(scene)
            wrong = changed(rng, statement, scene)
            assert wrong is not None, statement
            prefix = "a photo of " if rng.random() < self.options.photo_share else ""
            statements.append(statement)
            texts.append(prefix + statement.text)
            wrong_texts.append(prefix + wrong[0].text)
        tokens = self.tokenizer(texts + wrong_texts, padding=True, return_tensors="pt")
        return Batch(
            image_BPD=self.features([index for _, index in chosen]),
            ids_BT=tokens.input_ids[:size],
            mask_BT=tokens.attention_mask[:size],
            changed_ids_BT=tokens.input_ids[size:],
            changed_mask_BT=tokens.attention_mask[size:],
            true_BB=torch.tensor([[statement.is_true_of(scene) for statement in statements] for scene in scenes]),
        )


def _order(epoch: int, num_scenes: int) -> np.ndarray:
    return np.random.default_rng(epoch).permutation(num_scenes)


def _pixels(index: int) -> np.ndarray:
    return np.asarray(draw(TRAINING_SEEDS[index], (IMAGE_SIZE, IMAGE_SIZE)).image)
