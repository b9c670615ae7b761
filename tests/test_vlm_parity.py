"""Texts equal those of transformers, used as documented, alone or in any batch, for every family that runs here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from blip2cap.decode.image import Pixels
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.checkpoint import find
from blip2cap.models.registry import FAMILIES
from blip2cap.models.vlm.load import load
from blip2cap.models.vlm.model import Vlm
from blip2cap.options import ModelOptions
from blip2cap.records import Prompt
from tests.vlm_checkpoints import VLM_KINDS
from tests.vlm_in_memory import KINDS_IN_MEMORY, make_in_memory
from tests.vlm_plain import generate_plainly

PROMPTS = ("Describe this image.", "what is it?", "how many words are there in this image of a colour?")
OPTIONS = {
    "greedy": GenerateOptions(max_new_tokens=10),
    "beams": GenerateOptions(max_new_tokens=7, num_beams=3, num_captions=2, length_penalty=-1.0),
    "rules": GenerateOptions(max_new_tokens=10, repetition_penalty=1.4, no_repeat_ngram_size=2),
    "least": GenerateOptions(max_new_tokens=9, min_new_tokens=4, repetition_penalty=1.4),
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
    return generate_plainly(*load_plain(folder), pixels_HWC, prompt, options, system)


def counted(results: list[Any]) -> list[list[tuple[str, int]]]:
    return [[(generated.text, generated.num_tokens) for generated in result] for result in results]


def all_prompts(images: list[Pixels]) -> list[Prompt]:
    return [Prompt(image=at, text=text, name=f"{at}") for at in range(len(images)) for text in PROMPTS]


@pytest.mark.parametrize(
    "name", ["greedy", *(pytest.param(each, marks=pytest.mark.slow) for each in ("beams", "rules", "least"))]
)
def test_texts_equal_those_of_transformers_token_for_token(folder: Path, images: list[Pixels], name: str) -> None:
    options = OPTIONS[name]
    prompts = all_prompts(images)
    ours = counted(load_model(folder).generate(images, prompts, options, capacity=4))
    assert ours == [by_the_book(folder, images[prompt.image], prompt.text, options) for prompt in prompts]
    assert len({text for row in ours for text in row}) > len(PROMPTS), "texts that are all alike prove nothing"


@pytest.mark.long
def test_a_text_depends_neither_on_batch_size_nor_order_nor_neighbours(folder: Path, images: list[Pixels]) -> None:
    model, prompts = load_model(folder), all_prompts(images)
    for options in (OPTIONS["greedy"], GenerateOptions(temperature=1.5, top_k=50, num_captions=2, max_new_tokens=12)):
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


@pytest.mark.parametrize("kind", KINDS_IN_MEMORY)
def test_families_that_take_videos_too_make_the_texts_of_transformers_in_any_batch(
    kind: str, images: list[Pixels]
) -> None:
    model, prompts = make_in_memory(kind), all_prompts(images)
    expected = [
        generate_plainly(model.prompter.processor, model.network, images[each.image], each.text, OPTIONS["greedy"])
        for each in prompts
    ]
    for capacity in (64, 4, 1):
        assert counted(model.generate(images, prompts, OPTIONS["greedy"], capacity=capacity)) == expected
    assert len({text for row in expected for text in row}) > len(PROMPTS)
