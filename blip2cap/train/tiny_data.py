"""Seeds -> drawn scenes -> batches: pixels, packed texts, and the position of each thing in the image.

A scene and its texts are a function of epoch and position alone, so a resumed run gets the same batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
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


TextRow = tuple[list[int], list[int]]
"""Ids of the tokens of a text with its prompt, and the next token at positions that the model learns to predict."""


class DrawnExample(NamedTuple):
    """A scene with its texts. P = patches."""

    pixels_HWC: np.ndarray
    """uint8"""
    texts: list[TextRow]
    hints_3P: np.ndarray
    """As `patch_hints` returns them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnOptions:
    """Number of scenes, and the texts of each."""

    num_scenes: int = 64_000
    """Scenes of an epoch; no scene is in two of them."""
    questions_per_image: int = 1
    """Questions about each image, besides its caption, at first: captions and patch hints train the vision encoder."""
    more_questions_from: int = 4
    """Epoch from which there are `more_questions`: then the language model learns to answer from the features."""
    more_questions: int = 3
    photo_share: float = 0.15
    """Share of captions that follow the prompt "a photo of"."""
    strange_share: float = 0.08
    """Share of captions that follow random characters, so that the model continues any prompt."""
    capital_share: float = 0.3
    """Share of questions that begin with a capital letter."""


class DrawnScenes(Dataset[DrawnExample]):
    """The scenes of an epoch, drawn when they are read; worker processes see `set_epoch` too."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, options: DrawnOptions, seeds: Sequence[int] = TRAINING_SEEDS
    ) -> None:
        self.tokenizer, self.options, self.seeds = tokenizer, options, seeds
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return self.options.num_scenes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that scenes are of, counted from 0."""
        self._epoch.fill_(epoch)

    def __getitem__(self, position: int) -> DrawnExample:
        epoch = int(self._epoch)
        seed = self.seeds[epoch * len(self) + position]
        scene = draw(seed, (IMAGE_SIZE, IMAGE_SIZE))
        late = epoch >= self.options.more_questions_from
        num_questions = self.options.more_questions if late else self.options.questions_per_image
        # A separate stream for each scene: `random.Random(seed)` would repeat the numbers that drew it.
        texts = self._texts(random.Random(f"texts {seed}"), scene, num_questions)
        return DrawnExample(pixels_HWC=np.asarray(scene.image), texts=texts, hints_3P=patch_hints(scene))

    def _texts(self, rng: random.Random, scene: Scene, num_questions: int) -> list[TextRow]:
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

    def _tokens(self, prompt: str, text: str) -> TextRow:
        prompt_ids = list(self.tokenizer(prompt).input_ids)
        text_ids = list(self.tokenizer(f" {text}", add_special_tokens=False).input_ids)
        labels = [IGNORED] * (len(prompt_ids) - 1) + text_ids + [int(self.tokenizer.eos_token_id)]
        return prompt_ids + text_ids, labels


class DrawnCollator:
    """Makes the batches of `TinyTrainee`. B = scenes, T = tokens of all texts of a scene, one text after the other."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[DrawnExample]) -> dict[str, torch.Tensor]:
        """Return pixels uint8 [B, 3, H, W], kinds, colours and centres [B, P]; input_ids, targets and texts [B, T].

        `texts` is the number of the text that a token belongs to, from 1; 0 is padding.
        """
        hints = torch.from_numpy(np.stack([example.hints_3P for example in examples]))
        pixels = torch.from_numpy(np.stack([example.pixels_HWC for example in examples]))
        numbers = [[[text] * len(ids) for text, (ids, _) in enumerate(each.texts, 1)] for each in examples]
        return {
            "pixels": pixels.permute(0, 3, 1, 2).contiguous(),
            "input_ids": _packed([[ids for ids, _ in each.texts] for each in examples], self.pad_id),
            "targets": _packed([[labels for _, labels in each.texts] for each in examples], IGNORED),
            "texts": _packed(numbers, 0),
            "kinds": hints[:, 0],
            "colours": hints[:, 1],
            "centres": hints[:, 2].float(),
        }


def _packed(texts: Sequence[Sequence[Sequence[int]]], padding: int) -> torch.Tensor:
    """Return the values of all texts of each scene in a row, one row for each scene, padded on the right."""
    rows = [torch.tensor(list(chain.from_iterable(each))) for each in texts]
    return pad_sequence(rows, batch_first=True, padding_value=padding)


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
