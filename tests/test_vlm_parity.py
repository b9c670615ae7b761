"""Texts equal those of transformers, used as documented, alone or in any batch, for every family that runs here."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from blip2cap.decode.image import Pixels
from blip2cap.models.checkpoint import find
from blip2cap.models.registry import FAMILIES
from blip2cap.models.vlm.load import load
from blip2cap.models.vlm.model import Vlm
from blip2cap.options import GenerateOptions, ModelOptions
from blip2cap.records import Prompt
from tests.vlm_checkpoints import VLM_KINDS

PROMPTS = ("Describe this image.", "what is it?", "how many words are there in this image of a colour?")
OPTIONS = {
    "greedy": GenerateOptions(max_new_tokens=10),
    "beams": GenerateOptions(max_new_tokens=7, num_beams=3, num_captions=2, length_penalty=-1.0),
    "rules": GenerateOptions(max_new_tokens=9, min_new_tokens=4, repetition_penalty=1.4, no_repeat_ngram_size=2),
}


@functools.cache
def load_model(folder: Path) -> Vlm:
    options = ModelOptions(name=str(folder), device="cpu", dtype="float32")
    return load(find(options), options)


@functools.cache
def load_plain(folder: Path) -> tuple[Any, Any]:
    """Load processor and network with transformers alone."""
    return AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture(scope="module", params=VLM_KINDS)
def folder(request: pytest.FixtureRequest, vlm_checkpoints: Callable[[str], Path]) -> Path:
    return vlm_checkpoints(request.param)


@pytest.fixture(scope="module")
def images() -> list[Pixels]:
    """Images of different sizes: some families make more tokens of larger ones."""
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 52), (60, 30), (57, 61))]


def by_the_book(
    folder: Path, pixels_HWC: Pixels, prompt: str, options: GenerateOptions, system: str | None = None
) -> list[tuple[str, int]]:
    """Generate for one image with transformers alone; return the texts and their numbers of tokens."""
    processor, network = load_plain(folder)
    picture = Image.fromarray(pixels_HWC)
    if processor.chat_template is not None:
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]}
        ]
        if system is not None:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template([turns], add_generation_prompt=True, **settings)
    else:
        image = "<image>" if folder.name.startswith("paligemma") else ""
        inputs = processor(images=picture, text=image + prompt, return_tensors="pt")
        inputs.pop("labels", None)
    with torch.inference_mode():
        output = network.generate(
            **inputs,
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens or None,
            num_beams=options.num_beams,
            num_return_sequences=options.num_captions,
            length_penalty=options.length_penalty,
            repetition_penalty=options.repetition_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            do_sample=False,
        )
    num_given = 1 if network.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    ends = network.generation_config.eos_token_id
    rows = [list(itertools.takewhile(lambda token: token not in ends, row)) for row in output[:, num_given:].tolist()]
    keeps = folder.name.startswith("florence2")
    return [(processor.tokenizer.decode(row, skip_special_tokens=not keeps).strip(), len(row)) for row in rows]


def counted(results: list[Any]) -> list[list[tuple[str, int]]]:
    return [[(generated.text, generated.num_tokens) for generated in result] for result in results]


def all_prompts(images: list[Pixels]) -> list[Prompt]:
    return [Prompt(image=at, text=text, name=f"{at}") for at in range(len(images)) for text in PROMPTS]


@pytest.mark.parametrize(
    "name", ["greedy", *(pytest.param(each, marks=pytest.mark.slow) for each in ("beams", "rules"))]
)
def test_texts_equal_those_of_transformers_token_for_token(folder: Path, images: list[Pixels], name: str) -> None:
    options = OPTIONS[name]
    prompts = all_prompts(images)
    ours = counted(load_model(folder).generate(images, prompts, options, capacity=4))
    assert ours == [by_the_book(folder, images[prompt.image], prompt.text, options) for prompt in prompts]
    assert len({text for row in ours for text in row}) > len(PROMPTS), "texts that are all alike prove nothing"


def test_a_text_depends_neither_on_batch_size_nor_order_nor_neighbours(folder: Path, images: list[Pixels]) -> None:
    model, prompts = load_model(folder), all_prompts(images)
    for options in (OPTIONS["greedy"], GenerateOptions(temperature=1.5, top_k=50, num_captions=2, max_new_tokens=6)):
        together = model.generate(images, prompts, options, capacity=64)
        alone = []
        for prompt in prompts:
            only = Prompt(image=0, text=prompt.text, name=prompt.name)
            alone += model.generate([images[prompt.image]], [only], options, capacity=1)
        backwards = model.generate(images, prompts[::-1], options, capacity=3)[::-1]
        assert together == alone == backwards


def test_a_system_turn_is_that_of_the_chat_template(folder: Path, images: list[Pixels]) -> None:
    if not FAMILIES[folder.name].has_system_turn:
        pytest.skip("has no system's turn")
    options = GenerateOptions(max_new_tokens=10, system="answer in a few words")
    prompts = all_prompts(images)
    model = load_model(folder)
    model.check(options)
    ours = counted(model.generate(images, prompts, options))
    assert ours == [by_the_book(folder, images[each.image], each.text, options, options.system) for each in prompts]
    assert ours != counted(model.generate(images, prompts, OPTIONS["greedy"]))


def test_texts_end_at_the_ends_of_the_model_and_are_counted(folder: Path, images: list[Pixels]) -> None:
    results = load_model(folder).generate(images, all_prompts(images), GenerateOptions(max_new_tokens=30))
    generated = [each for result in results if isinstance(result, list) for each in result]
    assert len(generated) == len(results)
    assert any(each.finish_reason == "stop" for each in generated)
    assert all((each.finish_reason == "length") == (each.num_tokens == 30) for each in generated)
    assert len({each.num_tokens for each in generated}) > 1
