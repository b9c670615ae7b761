"""Drawn scenes -> batches of image features with a true and a false text each, and what is true of what.

Scenes and texts are functions of epoch and position alone, so a resumed run gets the same batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import BertTokenizer, Blip2VisionModel

from blip2cap.tiny.scenes import TRAINING_SEEDS, Scene, draw
from blip2cap.train.image_features import ImageFeatures
from blip2cap.train.statements import Statement, changed, full, shorter
from blip2cap.train.tiny import IMAGE_SIZE, PATCH_SIZE


@dataclass(frozen=True, kw_only=True, slots=True)
class PairOptions:
    """Number of scenes, and their texts."""

    num_scenes: int = 32_000
    """Scenes of an epoch, the same in all; each epoch has its own order and texts."""
    shorter_share: float = 0.3
    """Share of texts that leave out some of the caption, as people search: "a boat on the sea"."""
    photo_share: float = 0.05
    """Share of texts that begin with "a photo of"."""


class Pair(NamedTuple):
    """A scene with a true and a false text."""

    number: int
    """Index of the scene."""
    scene: Scene
    statement: Statement
    text: str
    changed: str
    """The same text with one word changed, so that it is false."""


class ScenePairs(Dataset[Pair]):
    """The pairs of an epoch; worker processes see `set_epoch` too."""

    def __init__(self, options: PairOptions) -> None:
        self.options = options
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.options.num_scenes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that pairs are of, counted from 0."""
        self._epoch.fill_(epoch)

    def __getitem__(self, position: int) -> Pair:
        epoch = int(self._epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng(epoch).permutation(len(self))
        index = int(self._order[1][position])
        scene = draw(TRAINING_SEEDS[index], (16, 16))
        rng = random.Random(f"pairs {epoch} {index}")
        statement = shorter(rng, scene) if rng.random() < self.options.shorter_share else full(scene)
        wrong = changed(rng, statement, scene)
        assert wrong is not None, statement
        prefix = "a photo of " if rng.random() < self.options.photo_share else ""
        return Pair(index, scene, statement, prefix + statement.text, prefix + wrong[0].text)


class PairCollator:
    """Makes the batches of `TinyItmTrainee`. B = pairs, P = patches, D = width, T = tokens."""

    def __init__(self, tokenizer: BertTokenizer, encoder: Blip2VisionModel, cache: Path, options: PairOptions) -> None:
        """`cache` is a file for the outputs of `encoder`, the frozen vision encoder."""
        self.tokenizer = tokenizer
        shape = (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1, encoder.config.hidden_size
        self.features = ImageFeatures(cache, encoder, _pixels, num_images=options.num_scenes, shape=shape)

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        """Return image_BPD, ids and masks [B, T] of both texts, and true_BB, as `Batch` in tiny_itm_losses has them."""
        size = len(pairs)
        texts = [pair.text for pair in pairs] + [pair.changed for pair in pairs]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        return {
            "image_BPD": self.features([pair.number for pair in pairs]),
            "ids_BT": tokens.input_ids[:size],
            "mask_BT": tokens.attention_mask[:size],
            "changed_ids_BT": tokens.input_ids[size:],
            "changed_mask_BT": tokens.attention_mask[size:],
            "true_BB": torch.tensor([[other.statement.is_true_of(pair.scene) for other in pairs] for pair in pairs]),
        }


def _pixels(index: int) -> np.ndarray:
    return np.asarray(draw(TRAINING_SEEDS[index], (IMAGE_SIZE, IMAGE_SIZE)).image)
