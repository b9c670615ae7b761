"""Sessions release their memory, leave clean caches, and also work with transformers' `generate`."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import Result
from blip2cap.models.blip2.cache import Cache
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.blip2.stream import TextRow, Tokens
from blip2cap.models.blip2.transformers_generate import TransformersStream
from blip2cap.records import Generated, Prompt
from tests.test_model_parity import load_model
from tests.test_model_stream import END, Surroundings


@pytest.fixture(scope="module", params=["opt", "t5"])
def model(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path]) -> Blip2:
    return load_model(checkpoints(request.param))


def encode(model: Blip2, num_images: int) -> torch.Tensor:
    rng = np.random.default_rng(5)
    size = model.image_size
    return model.encode([rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(num_images)])


def test_what_a_run_held_is_gone_with_it_without_a_collection(model: Blip2) -> None:
    features, gone = encode(model, 1), []
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            texts = model.start_texts(GenerateOptions(max_new_tokens=3), capacity=2)
            texts.add(features, [Prompt(image=0, text="a photo of", name="")])
            while texts.num_pending:
                texts.advance()
            gone.append(weakref.ref(texts))
            del texts
        assert [reference() for reference in gone] == [None] * 3
    finally:
        gc.enable()


def test_a_text_that_overflowed_leaves_nothing_behind_for_the_next_in_its_place(model: Blip2) -> None:
    options = GenerateOptions(max_new_tokens=8)
    features = encode(model, 2).clone()
    features[0] = float("nan")
    long, short = (Prompt(image=number, text=text, name="") for number, text in enumerate(("a photo of w1 w2 w3", "a")))
    alone = model.generate(features, [short], options, capacity=1)
    assert model.generate(features, [long, short], options, capacity=1)[1:] == alone


def test_several_lengths_of_prompts_about_several_images_equal_each_alone(model: Blip2) -> None:
    features, options = encode(model, 3), GenerateOptions(max_new_tokens=6, num_beams=2)
    texts = ("a", "a photo of", "what is it ?", "w1 w2")
    prompts = [Prompt(image=image, text=text, name="") for image in range(3) for text in texts]
    alone = [model.generate(features, [prompt], options)[0] for prompt in prompts]
    for capacity in (2, 5, 12):
        assert model.generate(features, prompts, options, capacity=capacity) == alone


class SmallMemory:
    """A language model with memory for one text only, and none for prompt 13 after its first text."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def __init__(self) -> None:
        self.generation_config = GenerationConfig(eos_token_id=END)
        self.prompts: list[int] = []

    def get_input_embeddings(self) -> torch.nn.Module:
        return torch.nn.Embedding(16, 1)

    def generate(self, *, input_ids: torch.Tensor, **inputs: object) -> torch.Tensor:
        if len(input_ids) > 1:
            raise MemoryError("more than one text")
        self.prompts.append(int(input_ids[0, 0]))
        if self.prompts[-1] == 13 and self.prompts.count(13) > 1:
            raise MemoryError("another text of prompt 13")
        return torch.cat([input_ids, torch.tensor([[self.prompts[-1], END]])], dim=1)


def test_a_prompt_with_samples_that_do_not_fit_fails_once() -> None:
    options, language_model = GenerateOptions(num_captions=3, temperature=1.0), SmallMemory()
    stream = TransformersStream(Surroundings(), language_model, options, capacity=8)
    stream.add(
        TextRow(ticket=ticket, tokens=Tokens(ids=[name], qformer_ids=[]), image=torch.zeros(1), seed=0, copy=copy)
        for ticket, name in enumerate((7, 13, 8))
        for copy in range(3)
    )
    results: dict[int, Result] = {}
    while stream.num_pending:
        for ticket, result in stream.advance():
            assert ticket not in results
            results[ticket] = result
    assert language_model.prompts == [7] * 3 + [13] * 3 + [8] * 3
    for ticket, text in ((0, "7"), (2, "8")):
        assert results.pop(ticket) == [Generated(text=text, finish_reason="stop", num_tokens=1)] * 3
    (failed,) = results.values()
    assert isinstance(failed, ImageError)
    assert failed.code == "out_of_memory"


def test_less_memory_than_for_a_few_texts_is_respected(model: Blip2, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.decoder is not None
    num_bytes = model.decoder.bytes_per_row(model.num_query_tokens + 16, 8)
    monkeypatch.setattr("blip2cap.models.blip2.text_session.free_bytes", lambda device: num_bytes * 11)
    assert model.start_texts(GenerateOptions(max_new_tokens=8), capacity=None).capacity == 5


def test_a_cache_outlives_its_session_and_other_options_free_it(model: Blip2, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, allocated = model.decoder, list[weakref.ref[object]]()
    assert decoder is not None
    allocate = decoder.new_cache

    def new_cache(*arguments: int) -> Cache:
        cache = allocate(*arguments)
        allocated.append(weakref.ref(cache.own_L2RHSK))
        return cache

    monkeypatch.setattr(decoder, "new_cache", new_cache)
    features, prompts = encode(model, 2), [Prompt(image=image, text="a photo of", name="") for image in range(2)]
    options = GenerateOptions(max_new_tokens=5)
    results = [model.generate(features, prompts, options, capacity=2) for _ in range(3)]
    assert results[0] == results[1] == results[2]
    assert len(allocated) == 1
    model.generate(features, prompts, GenerateOptions(max_new_tokens=6), capacity=2)
    assert [reference() is None for reference in allocated] == [True, False]


def test_a_run_that_broke_off_leaves_a_cache_that_the_next_can_use(model: Blip2) -> None:
    features, options = encode(model, 3), GenerateOptions(max_new_tokens=7)
    prompts = [Prompt(image=image, text="a photo of", name="") for image in range(3)]
    expected = model.generate(features, prompts, options, capacity=3)
    broken = model.start_texts(options, capacity=3)
    broken.add(features, prompts)
    for _ in range(4):
        broken.advance()
    del broken
    assert model.generate(features, prompts[:1], options, capacity=3) == expected[:1]
    assert model.generate(features, prompts, options, capacity=3) == expected


OPTIONS = {
    "greedy": GenerateOptions(max_new_tokens=7),
    "beams": GenerateOptions(max_new_tokens=7, num_beams=3, num_captions=2),
    "rules": GenerateOptions(max_new_tokens=7, num_beams=2, no_repeat_ngram_size=2, repetition_penalty=1.4),
    "samples": GenerateOptions(max_new_tokens=7, num_captions=2, temperature=1.0, min_new_tokens=3),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_texts_are_the_same_as_on_a_gpu_with_replayed_steps_that_are_read_late(
    model: Blip2, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    features, options = encode(model, 3), OPTIONS[name]
    texts = ("a", "a photo of", "what is it ?")
    prompts = [Prompt(image=image, text=text, name=f"{image}{text}") for image in range(3) for text in texts]
    expected = model.generate(features, prompts, options, capacity=9)
    monkeypatch.setattr(model, "on_cpu", False)
    monkeypatch.setattr(model, "reads_late", True)
    monkeypatch.setattr(model, "start_capture", lambda: lambda step: step)
    for capacity in (2, 5, 9):
        assert model.generate(features, prompts, options, capacity=capacity) == expected
