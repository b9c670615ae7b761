"""Training seeds -> batches: pixels, packed texts, and the position of each thing in the image.

Batch number `step` is a function of the seed range and `step` alone, so a resumed run gets the same batches.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from blip2cap.models.registry import FAMILIES
from blip2cap.tiny.scenes import COLOURS, PLURALS, TRAINING_SEEDS, Scene, draw
from blip2cap.train.tiny import IMAGE_SIZE, PATCH_SIZE

IGNORED = -100
"""Label of a token that the loss ignores."""
_KINDS = tuple(PLURALS)
_COLOURS = tuple(COLOURS)
_PRINTABLE = "".join(map(chr, range(32, 127)))


class Batch(NamedTuple):
    """One training batch. B = images, K = texts an image, T = text tokens, P = patches."""

    pixels_BCHW: torch.Tensor
    """uint8"""
    ids_BKT: torch.Tensor
    labels_BKT: torch.Tensor
    """The next token at positions that the model learns to predict, else IGNORED."""
    kinds_BP: torch.Tensor
    """0 for background, else 1 + the kind of the thing that covers the patch."""
    colours_BP: torch.Tensor
    """0 for background, else 1 + its colour."""
    centres_BP: torch.Tensor
    """1.0 in the patch that contains the centre of a thing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Composition of a training batch."""

    batch_size: int = 64
    """Images in a batch."""
    questions_per_image: int = 1
    """Questions about each image, besides its caption, at first: captions and patch hints train the vision encoder."""
    more_questions_from: int = 4_000
    """Step from which there are `more_questions`: then the language model learns to answer from the features."""
    more_questions: int = 3
    photo_share: float = 0.15
    """Share of captions that follow the prompt "a photo of"."""
    strange_share: float = 0.08
    """Share of captions that follow random characters, so that the model continues any prompt."""
    capital_share: float = 0.3
    """Share of questions that begin with a capital letter."""


class SceneBatches(Dataset[Batch]):
    """Training batches by step number."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, options: DataOptions) -> None:
        self.tokenizer = tokenizer
        self.options = options

    def __getitem__(self, step: int) -> Batch:
        size = self.options.batch_size
        scenes = [
            (seed, draw(seed, (IMAGE_SIZE, IMAGE_SIZE))) for seed in TRAINING_SEEDS[step * size : (step + 1) * size]
        ]
        late = step >= self.options.more_questions_from
        num_questions = self.options.more_questions if late else self.options.questions_per_image
        # A separate stream for each scene: `random.Random(seed)` would repeat the numbers that drew it.
        texts = [self._texts(random.Random(f"texts {seed}"), scene, num_questions) for seed, scene in scenes]
        length = max(len(ids) for rows in texts for ids, _ in rows)
        pad = int(self.tokenizer.pad_token_id)
        hints = np.stack([patch_hints(scene) for _, scene in scenes])
        pixels = np.stack([np.asarray(scene.image) for _, scene in scenes])
        return Batch(
            pixels_BCHW=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            ids_BKT=torch.tensor([[ids + [pad] * (length - len(ids)) for ids, _ in rows] for rows in texts]),
            labels_BKT=torch.tensor(
                [[labels + [IGNORED] * (length - len(labels)) for _, labels in rows] for rows in texts]
            ),
            kinds_BP=torch.from_numpy(hints[:, 0]),
            colours_BP=torch.from_numpy(hints[:, 1]),
            centres_BP=torch.from_numpy(hints[:, 2]).float(),
        )

    def _texts(self, rng: random.Random, scene: Scene, num_questions: int) -> list[tuple[list[int], list[int]]]:
        """Return the caption and some questions of a scene as (token ids, labels)."""
        pairs = [(self._prompt(rng), scene.caption)]
        types = sorted({question.type for question in scene.questions})
        for _ in range(num_questions):
            wanted = rng.choice(types)
            question = rng.choice([question for question in scene.questions if question.type == wanted])
            text = question.text.capitalize() if rng.random() < self.options.capital_share else question.text
            pairs.append((FAMILIES["opt"].vqa_template.replace("{question}", text), question.answer))
        return [self._tokens(prompt, text) for prompt, text in pairs]

    def _prompt(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < self.options.photo_share:
            return "a photo of"
        if kind < self.options.photo_share + self.options.strange_share:
            return "".join(rng.choices(_PRINTABLE, k=rng.randint(1, 24)))
        return ""

    def _tokens(self, prompt: str, text: str) -> tuple[list[int], list[int]]:
        prompt_ids = list(self.tokenizer(prompt).input_ids)
        text_ids = list(self.tokenizer(f" {text}", add_special_tokens=False).input_ids)
        labels = [IGNORED] * (len(prompt_ids) - 1) + text_ids + [int(self.tokenizer.eos_token_id)]
        return prompt_ids + text_ids, labels


def patch_hints(scene: Scene) -> np.ndarray:
    """Return kind, colour and centre for every patch of the model's grid; int64 [3, P]."""
    side = IMAGE_SIZE // PATCH_SIZE
    hints = np.zeros((3, side, side), dtype=np.int64)
    for thing in scene.things:
        left, top, right, bottom = (round(edge * side) for edge in thing.box)
        covered = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
        hints[0][covered] = 1 + _KINDS.index(thing.kind)
        hints[1][covered] = 1 + _COLOURS.index(thing.colour)
        row, column = (thing.box[1] + thing.box[3]) / 2 * side, (thing.box[0] + thing.box[2]) / 2 * side
        hints[2][min(side - 1, int(row)), min(side - 1, int(column))] = 1
    return hints.reshape(3, -1)
