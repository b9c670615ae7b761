"""Texts equal those of the transformers classes, used as documented, one image at a time."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2Processor,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)

from blip2cap.decode.image import resize
from blip2cap.errors import ImageError, UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.load import load
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.checkpoint import find
from blip2cap.options import ModelOptions
from blip2cap.records import Generated, Prompt
from tests.checkpoints import KINDS

PROMPTS = ("a photo of", "", "Question : what is it ? Answer :", "w1 w2 w3 w4 w5 w6 w7")
OPTIONS = {
    "greedy": GenerateOptions(max_new_tokens=8),
    "beams": GenerateOptions(max_new_tokens=8, num_beams=3),
    "two of four beams": GenerateOptions(max_new_tokens=8, num_beams=4, num_captions=2, length_penalty=-1.0),
    "rules": GenerateOptions(max_new_tokens=9, min_new_tokens=4, repetition_penalty=1.4, no_repeat_ngram_size=2),
}


@functools.cache
def load_model(folder: Path) -> Blip2:
    options = ModelOptions(name=str(folder), device="cpu", dtype="float32")
    return load(find(options), options)


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=[pytest.mark.long] if kind.startswith("instructblip") else []) for kind in KINDS],
)
def folder(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints(request.param)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)) for _ in range(3)]


@functools.cache
def load_plain(folder: Path) -> tuple[Any, Any]:
    """Load processor and model with transformers alone."""
    instruct = (folder / "qformer_tokenizer").exists()
    processor_class: Any = InstructBlipProcessor if instruct else Blip2Processor
    model_class: Any = InstructBlipForConditionalGeneration if instruct else Blip2ForConditionalGeneration
    return processor_class.from_pretrained(folder), model_class.from_pretrained(folder)


def by_the_book(folder: Path, image: Image.Image, prompt: str, options: GenerateOptions) -> list[tuple[str, int]]:
    """Generate with transformers alone; return the texts and their numbers of tokens."""
    processor, model = load_plain(folder)
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    output = model.generate(
        **inputs,
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens or None,
        num_beams=options.num_beams,
        num_return_sequences=options.num_captions,
        length_penalty=options.length_penalty,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
    )
    # A decoder returns what it was given first, T5 the token that its decoder starts with.
    num_given = 1 if model.language_model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    output = output[:, num_given:]
    ends = np.atleast_1d(model.language_model.generation_config.eos_token_id)
    rows = [list(itertools.takewhile(lambda token: token not in ends, row)) for row in output.tolist()]
    return [(processor.decode(row, skip_special_tokens=True).strip(), len(row)) for row in rows]


def texts(results: list[Any]) -> list[list[str]]:
    return [[generated.text for generated in result] for result in results]


def counted(results: list[Any]) -> list[list[tuple[str, int]]]:
    return [[(generated.text, generated.num_tokens) for generated in result] for result in results]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name == "beams" else name for name in OPTIONS]
)
def test_texts_equal_those_of_transformers_token_for_token(folder: Path, images: list[Image.Image], name: str) -> None:
    options = OPTIONS[name]
    model = load_model(folder)
    features = model.encode([resize(image, model.image_size).pixels_HWC for image in images])
    prompts = [Prompt(image=at, text=text, name=str(at)) for at in range(len(images)) for text in PROMPTS]
    ours = counted(model.generate(features, prompts, options, capacity=16))
    expected = [by_the_book(folder, images[prompt.image], prompt.text, options) for prompt in prompts]
    assert ours == expected
    assert len({text for row in ours for text in row}) > len(PROMPTS), "texts that are all alike prove nothing"


def test_texts_that_end_equal_those_of_transformers_too(
    folder: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    model = load_model(folder)
    pixels = [resize(image, model.image_size).pixels_HWC for image in images]
    prompts = [Prompt(image=at, text=text, name="") for at in range(len(images)) for text in PROMPTS]
    greedy = GenerateOptions(max_new_tokens=8)
    said = texts(model.generate(model.encode(pixels), prompts, greedy, capacity=16))
    end = Counter(word for (text,) in said for word in text.split()[2:5]).most_common(1)[0][0]
    ending = Path(shutil.copytree(folder, tmp_path / folder.name))
    config = json.loads((ending / "config.json").read_text())
    # The end of the tokenizer ends texts too, whatever the configuration says.
    ends = [model.tokenizer.convert_tokens_to_ids(end), model.tokenizer.eos_token_id]
    config["text_config"]["eos_token_id"] = ends
    (ending / "config.json").write_text(json.dumps(config))
    model = load_model(ending)
    for options in (greedy, OPTIONS["beams"]):
        results = model.generate(model.encode(pixels), prompts, options, capacity=16)
        expected = [by_the_book(ending, images[prompt.image], prompt.text, options) for prompt in prompts]
        assert counted(results) == expected
        reasons = {generated.finish_reason for row in results if isinstance(row, list) for generated in row}
        assert reasons == {"stop", "length"}


def test_a_text_depends_neither_on_batch_size_nor_order_nor_neighbours(folder: Path, images: list[Image.Image]) -> None:
    model = load_model(folder)
    pixels = [resize(image, model.image_size).pixels_HWC for image in images]
    prompts = [Prompt(image=at, text=text, name=str(at)) for at in range(len(images)) for text in PROMPTS]
    for options in (OPTIONS["greedy"], OPTIONS["beams"], GenerateOptions(temperature=1.0, max_new_tokens=6)):
        together = texts(model.generate(model.encode(pixels), prompts, options, capacity=64))
        alone = []
        for prompt in prompts:
            only = Prompt(image=0, text=prompt.text, name=prompt.name)
            alone += texts(model.generate(model.encode([pixels[prompt.image]]), [only], options, capacity=1))
        backwards = texts(model.generate(model.encode(pixels), prompts[::-1], options, capacity=3))[::-1]
        assert together == alone == backwards


def test_a_prompt_is_never_echoed(folder: Path, images: list[Image.Image]) -> None:
    model = load_model(folder)
    features = model.encode([resize(images[0], model.image_size).pixels_HWC])
    prompt = Prompt(image=0, text="a photo of", name="")
    (result,) = model.generate(features, [prompt], GenerateOptions(max_new_tokens=3), capacity=1)
    assert isinstance(result, list)
    assert result[0].num_tokens <= 3
    assert not result[0].text.startswith("a photo of")


def test_the_image_matters(folder: Path, images: list[Image.Image]) -> None:
    model = load_model(folder)
    features = model.encode([resize(image, model.image_size).pixels_HWC for image in images])
    prompts = [Prompt(image=at, text="a photo of", name="") for at in range(len(images))]
    results = texts(model.generate(features, prompts, GenerateOptions(max_new_tokens=8), capacity=4))
    assert len({row[0] for row in results}) > 1


def test_the_reason_to_finish_and_the_tokens_are_counted(folder: Path, images: list[Image.Image]) -> None:
    model = load_model(folder)
    features = model.encode([resize(image, model.image_size).pixels_HWC for image in images])
    prompts = [Prompt(image=at, text=text, name=str(at)) for at in range(len(images)) for text in PROMPTS]
    for result in model.generate(features, prompts, GenerateOptions(max_new_tokens=60 - 25), capacity=16):
        assert isinstance(result, list)
        generated: Generated = result[0]
        assert generated.finish_reason in ("stop", "length")
        assert (generated.finish_reason == "length") == (generated.num_tokens == 35)


def test_a_prompt_that_does_not_fit_fails_alone_and_options_that_never_fit_are_refused(
    folder: Path, images: list[Image.Image]
) -> None:
    model = load_model(folder)
    features = model.encode([resize(images[0], model.image_size).pixels_HWC])
    prompts = [Prompt(image=0, text=text, name="") for text in ("a photo of", "w1 " * 60)]
    short, long = model.generate(features, prompts, GenerateOptions(max_new_tokens=5), capacity=4)
    assert isinstance(short, list)
    if model.num_positions is None:
        assert isinstance(long, list)
    else:
        assert isinstance(long, ImageError)
        assert long.code == "unsupported"
        with pytest.raises(UsageError, match="max_new_tokens 60"):
            model.check(GenerateOptions(max_new_tokens=60))
    model.check(GenerateOptions(max_new_tokens=59))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_on_a_cpu_too(folder: Path, images: list[Image.Image], dtype: str) -> None:
    options = ModelOptions(name=str(folder), device="cpu", dtype=dtype)
    if dtype == "float16" and folder.name.startswith(("t5", "instructblip-t5")):
        pytest.skip("refused: T5 overflows in float16")
    model = load(find(options), options)
    assert model.dtype == getattr(torch, dtype)
    features = model.encode([resize(images[0], model.image_size).pixels_HWC])
    prompt = Prompt(image=0, text="a photo of", name="")
    (result,) = model.generate(features, [prompt], GenerateOptions(max_new_tokens=4), capacity=1)
    assert isinstance(result, list)
