"""Captioning models give the last hidden state of their Q-Former, as the transformers classes compute it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blip2cap.errors import UsageError
from blip2cap.models.blip2.load import load
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.checkpoint import find
from blip2cap.options import ModelOptions
from blip2cap.records import Prompt
from tests.checkpoints import IMAGE_SIZE, KINDS

RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8) for _ in range(3)]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path]) -> Blip2:
    options = ModelOptions(name=str(checkpoints(request.param)), device="cpu", dtype="float32")
    return load(find(options), options)


def vectors_of(model: Blip2, *, normalised: bool, numbers: tuple[int, ...] = (0, 1, 2)) -> np.ndarray[Any, Any]:
    session = model.start_embed("qformer", normalised=normalised, capacity=None)
    features = session.encode([PIXELS[number] for number in numbers])
    tickets = session.add(features, [Prompt(image=index, text="", name="") for index in range(len(numbers))])
    found = dict(session.advance())
    assert session.num_pending == 0
    return np.stack([found[ticket] for ticket in tickets])


def test_vectors_are_the_last_hidden_state_of_the_qformer(model: Blip2) -> None:
    network, instructed = model.network, {}
    if model.qformer_tokenizer is not None:
        ids = torch.tensor([model.qformer_tokenizer("").input_ids] * 3)
        instructed = {"input_ids": ids, "attention_mask": torch.ones(3, 4 + ids.shape[1], dtype=torch.long)}
    mean, std = torch.tensor(model.mean), torch.tensor(model.std)
    pixels = ((torch.from_numpy(np.stack(PIXELS)) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        patches = network.vision_model(pixels).last_hidden_state
        queries = network.query_tokens.expand(3, -1, -1)
        expected = network.qformer(query_embeds=queries, encoder_hidden_states=patches, **instructed)[0][:, :4].numpy()
    found = vectors_of(model, normalised=False)
    assert (found.dtype, found.shape[1:]) == (np.dtype(np.float32), model.embedding_shape("qformer"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors_of(model, normalised=True), axis=-1), 1, rtol=1e-6)
    alone = np.concatenate([vectors_of(model, normalised=False, numbers=(number,)) for number in (2, 1, 0)])
    np.testing.assert_allclose(alone[::-1], found, rtol=0, atol=1e-5)


def test_vectors_of_the_common_space_need_a_matching_model(model: Blip2) -> None:
    for what in ("pooled", "queries"):
        with pytest.raises(UsageError, match=f"what {what}: this model has qformer. For .* Salesforce/blip2-itm-vit-g"):
            model.start_embed(what, normalised=True, capacity=None)
