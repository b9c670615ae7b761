"""A stand-in for an image-text matching model: scores and vectors that depend on the mean colour of an image alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from blip2cap.decode.image import Pixels
from blip2cap.decode.inputs import ImageInput, SquareInput
from blip2cap.errors import ImageError, UsageError
from blip2cap.models.base import Checkpoint, Family
from blip2cap.models.registry import FAMILIES
from blip2cap.options import ModelOptions
from blip2cap.records import MatchScore, Prompt

MODEL_TYPE = "fake-matching"
CONFIG = {
    "model_type": MODEL_TYPE,
    "image_text_hidden_size": 6,
    "num_query_tokens": 3,
    "qformer_config": {"hidden_size": 4},
}
COLOURS = ("red", "green", "blue")
MOST_CHARACTERS = 40
"""Longer texts do not fit."""


class FakeMatcher:
    """A text fits an image as well as the colour that it names does."""

    device: Any = SimpleNamespace(type="cpu")
    dtype: Any = "torch.float32"
    quantize: str | None = None
    on_cpu = True
    fallback_reason = ""
    remark = ""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.image_input: ImageInput = SquareInput(8)
        self.num_encoded = 0
        self.prompts: list[Prompt] = []

    def wait(self) -> None:
        """Nothing to wait for."""

    def embedding_shape(self, what: str) -> tuple[int, ...]:
        """Return shapes that differ from each other."""
        return {"pooled": (6,), "queries": (3, 6), "qformer": (3, 4)}[what]

    def check_texts(self, texts: Sequence[str]) -> None:
        """Refuse long texts."""
        for text in texts:
            if len(text) > MOST_CHARACTERS:
                raise UsageError(f'text "{text}": too long.')

    def start_match(self, *, capacity: int | None, num_texts: int = 0) -> FakeSession:
        """Open a session that scores."""
        return FakeSession(self, self._score)

    def start_embed(self, what: str, *, normalised: bool, capacity: int | None) -> FakeSession:
        """Open a session that computes vectors."""
        return FakeSession(self, lambda colour, prompt: self._vectors(colour, self.embedding_shape(what), normalised))

    def embed_texts(self, texts: Sequence[str], *, normalised: bool = True) -> np.ndarray:
        """Return vectors of texts."""
        return np.stack([self._vectors(_colour_of(text), (6,), normalised) for text in texts])

    def _score(self, colour: np.ndarray, prompt: Prompt) -> MatchScore | ImageError:
        if len(prompt.text) > MOST_CHARACTERS:
            return ImageError("unsupported", "its text: too long")
        if "nan" in prompt.text:
            return MatchScore(itm=float("nan"), itc=0.0)
        itm = float(colour @ _colour_of(prompt.text))
        return MatchScore(itm=itm, itc=itm * 2 - 1)

    def _vectors(self, colour: np.ndarray, shape: tuple[int, ...], normalised: bool) -> np.ndarray:
        numbers = np.resize(colour, shape).astype(np.float32) + 1
        return numbers / np.linalg.norm(numbers, axis=-1, keepdims=True) if normalised else numbers


def _colour_of(text: str) -> np.ndarray:
    return np.array([colour in text for colour in COLOURS], np.float32)


class FakeSession:
    """Results of one call for each image and prompt, the last first."""

    capacity, num_ahead = 16, 0

    def __init__(self, model: FakeMatcher, result: Any) -> None:
        self.model, self.result = model, result
        self.waiting: list[tuple[int, Any]] = []
        self.num_added = 0

    @property
    def num_pending(self) -> int:
        """Number of waiting prompts."""
        return len(self.waiting)

    def encode(self, images: Sequence[Pixels]) -> list[np.ndarray]:
        """Return mean colours, from 0 to 1."""
        self.model.num_encoded += len(images)
        return [pixels.mean(axis=(0, 1)) / 255 for pixels in images]

    def add(self, features: Any, prompts: Sequence[Prompt]) -> list[int]:
        """Queue prompts."""
        self.model.prompts += prompts
        tickets = list(range(self.num_added, self.num_added + len(prompts)))
        self.num_added += len(prompts)
        for ticket, prompt in zip(tickets, prompts, strict=True):
            self.waiting.append((ticket, self.result(features[prompt.image], prompt)))
        return tickets

    def close(self) -> None:
        """Do nothing."""

    def advance(self) -> list[tuple[int, Any]]:
        """Return all results."""
        done, self.waiting = self.waiting[::-1], []
        return done


def register(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Register the family of the fake; return the folder of a checkpoint of it, made in `folder`."""

    def load(checkpoint: Checkpoint, options: ModelOptions) -> Any:
        return FakeMatcher(checkpoint)

    family = Family(
        name=MODEL_TYPE,
        model_type=MODEL_TYPE,
        tasks=("match", "embed"),
        image_input=lambda checkpoint, options: SquareInput(8),
        load=load,
    )
    monkeypatch.setitem(FAMILIES, family.name, family)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(b"")
    return folder
