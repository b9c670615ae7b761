"""The work of a vision-language model, counted by a trial, is that of its layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from blip2cap.bench.trial import try_once
from blip2cap.errors import ModelError
from blip2cap.models.checkpoint import find
from blip2cap.models.vlm.load import load
from blip2cap.models.vlm.model import Vlm
from blip2cap.options import ModelOptions

PIXELS = np.full((56, 56, 3), 200, np.uint8)


@pytest.fixture
def model(vlm_checkpoints: Callable[[str], Path], request: pytest.FixtureRequest) -> Vlm:
    options = ModelOptions(name=str(vlm_checkpoints(request.param)), device="cpu", dtype="float32")
    return load(find(options), options)


def num_weights(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


@pytest.mark.parametrize("model", ["llava"], indirect=True)
def test_each_phase_has_the_products_of_its_layers(model: Vlm) -> None:
    model.network.generation_config.num_beams = 3  # that of the command counts
    trial = try_once(model, PIXELS, "what is it?")
    parts, head = model.network.model, model.network.lm_head.weight.numel()
    layers = num_weights(parts.language_model)
    num_tokens = model.prompter.inputs([PIXELS], [model.prompter.write("what is it?", None)])["input_ids"].shape[1]
    assert trial.prefill.flops == 2 * (layers * num_tokens + head)
    assert trial.step.flops == 2 * (layers + head)
    assert trial.step.weight_bytes == trial.prefill.weight_bytes == 4 * (layers + head)
    patches, kernel = (28 // 14) ** 2, parts.vision_tower.embeddings.patch_embedding.weight.numel()
    projector = num_weights(parts.multi_modal_projector)
    tower = num_weights(parts.vision_tower)
    assert trial.vision.flops == 2 * (patches * kernel + (patches + 1) * tower + patches * projector)
    assert trial.vision.weight_bytes == 4 * (kernel + tower + projector)
    config = model.network.config.text_config
    assert trial.step.state_bytes == 4 * 2 * (num_tokens + 1) * config.num_hidden_layers * config.head_dim


@pytest.mark.parametrize("model", ["florence2", "idefics3", "gemma3"], indirect=True)
def test_other_forms_of_models_are_counted_too(model: Vlm) -> None:
    prompt = "<CAPTION>" if model.is_encoder_decoder else "what is it?"
    trial = try_once(model, PIXELS, prompt)
    for phase in (trial.vision, trial.prefill, trial.step):
        assert phase.flops > 0
        assert phase.weight_bytes > 0
    assert trial.step.flops < trial.prefill.flops
    assert trial.step.state_bytes > 0


@pytest.mark.parametrize("model", ["llava"], indirect=True)
def test_work_grows_with_texts_tokens_and_beams_but_the_image_is_computed_once(model: Vlm) -> None:
    trial = try_once(model, PIXELS, "what is it?")
    one = trial.work(num_texts=1, new_tokens=5, num_beams=1)
    assert one["steps"].flops == 4 * trial.step.flops
    assert one.head_flops == 5 * trial.head_flops
    many = trial.work(num_texts=3, new_tokens=5, num_beams=2)
    assert many["steps"].flops == 3 * 2 * 4 * trial.step.flops
    assert many["steps"].num_reads == 12
    assert (many["vision"], many["prefill"]) == (one["vision"], one["prefill"])
    assert trial.work(num_texts=1, new_tokens=1, num_beams=1)["steps"].flops == 0
    assert many.kv_bytes == one["prefill"].state_bytes + 2 * 3 * trial.token_bytes


@pytest.mark.parametrize("model", ["llava"], indirect=True)
def test_an_image_that_the_model_does_not_take_is_said(model: Vlm) -> None:
    with pytest.raises(ModelError, match=r'does not take an image of 56 x 56 pixels with the prompt "it it'):
        try_once(model, PIXELS, "it " * 3000)
