"""A GPU gives the texts of a CPU: `pytest -m gpu`. The same code runs on a CPU, so that it is tried without one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import Result
from blip2cap.models.blip2.gpu_linear import Fp8Linear, GpuInt8Linear
from blip2cap.models.blip2.load import load
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.checkpoint import find
from blip2cap.options import ModelOptions
from blip2cap.records import Prompt
from tests.checkpoints import IMAGE_SIZE, KINDS

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
SEARCHES = {
    "greedy": GenerateOptions(max_new_tokens=8),
    "sampling": GenerateOptions(max_new_tokens=8, temperature=0.8, top_k=20, num_captions=2),
    "beams": GenerateOptions(max_new_tokens=8, num_beams=3),
    "rules": GenerateOptions(max_new_tokens=8, min_new_tokens=3, repetition_penalty=1.4, no_repeat_ngram_size=2),
}
PROMPTS = [
    Prompt(image=number % 4, text=text, name=str(number))
    for number, text in enumerate(["a photo of", "", "what is it ?", "w1 w2 w3 w4 w5 w6 w7", "a"] * 4)
]


CASES = [
    ("cpu", "opt", "beams"),  # tests/test_model_parity.py has the rest
    *[pytest.param("cuda", kind, search, marks=ON_GPU) for kind in KINDS for search in SEARCHES],
]


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Iterator[None]:
    """By default cuDNN rounds the input of convolutions."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@functools.cache
def load_model(folder: Path | str, device: str, dtype: str = "float32") -> Blip2:
    options = ModelOptions(name=str(folder), device=device, dtype=dtype)
    return load(find(options), options)


def pictures(size: int) -> list[Any]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(4)]


def generate(model: Blip2, search: str, capacity: int) -> list[Result]:
    return model.generate(model.encode(pictures(IMAGE_SIZE)), PROMPTS, SEARCHES[search], capacity=capacity)


@pytest.mark.parametrize(("device", "kind", "search"), CASES)
def test_texts_in_float32_are_those_of_a_cpu_whatever_the_batch(
    checkpoints: Callable[[str], Path], device: str, kind: str, search: str
) -> None:
    expected = generate(load_model(checkpoints(kind), "cpu"), search, 16)
    model = load_model(checkpoints(kind), device)
    assert generate(model, search, 16) == expected
    assert generate(model, search, 3) == expected


@pytest.mark.parametrize(
    ("device", "kind"), [("cpu", "opt"), *[pytest.param("cuda", kind, marks=ON_GPU) for kind in KINDS]]
)
def test_texts_in_bfloat16_are_mostly_those_in_float32(
    checkpoints: Callable[[str], Path], device: str, kind: str
) -> None:
    """Rounding may change a token, and all after it: the first ones tell a wrong mask or position from rounding."""
    given = generate(load_model(checkpoints(kind), device, "bfloat16"), "greedy", 16)
    expected = generate(load_model(checkpoints(kind), "cpu"), "greedy", 16)
    same = [first_words(one) == first_words(other) for one, other in zip(given, expected, strict=True)]
    assert sum(same) >= len(PROMPTS) / 2, f"{sum(same)} of {len(same)}"


def first_words(result: Result) -> list[str]:
    assert isinstance(result, list)
    return result[0].text.split()[:2]


@pytest.mark.parametrize("device", DEVICES)
def test_two_models_that_take_turns_on_streams_of_their_own_do_not_disturb_each_other(
    checkpoints: Callable[[str], Path], device: str
) -> None:
    """On two GPUs where there are two."""
    last = f"cuda:{torch.cuda.device_count() - 1}" if device == "cuda" else device
    models = [load_model(checkpoints("opt"), device), load_model(checkpoints("t5"), last)]
    alone = [generate(model, "greedy", 4) for model in models]
    streams = [own_stream(model) for model in models]
    sessions, tickets = [], []
    for model, stream in zip(models, streams, strict=True):
        with stream():
            sessions.append(model.start_texts(SEARCHES["greedy"], capacity=4))
            tickets.append(sessions[-1].add(model.encode(pictures(IMAGE_SIZE)), PROMPTS))
    found: list[dict[int, Result]] = [{}, {}]
    while any(session.num_pending for session in sessions):
        for number, stream in enumerate(streams):
            with stream():
                found[number].update(sessions[number].advance())
    assert [[results[ticket] for ticket in order] for results, order in zip(found, tickets, strict=True)] == alone


def own_stream(model: Blip2) -> Callable[[], AbstractContextManager[Any]]:
    if model.device.type == "cpu":
        return nullcontext
    stream = torch.cuda.Stream(model.device)
    return lambda: torch.cuda.stream(stream)


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_that_meets_the_end_of_memory_gives_every_text(
    checkpoints: Callable[[str], Path], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, num_texts = load_model(checkpoints("opt"), device), 40_000 if device == "cuda" else 80
    prompts = [replace(PROMPTS[number % 20], name=str(number)) for number in range(num_texts)]
    features, options = model.encode(pictures(IMAGE_SIZE)), SEARCHES["greedy"]
    expected = model.generate(features, PROMPTS, options, capacity=20)
    with little_memory(model, num_texts, monkeypatch) as refused:
        assert model.generate(features, prompts, options, capacity=num_texts) == expected * (num_texts // 20)
    assert refused


@contextmanager
def little_memory(model: Blip2, num_texts: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let that many texts not fit at once; give a list that is not empty after the first refusal."""
    decoder, device, refused = model.decoder, model.device, list[int]()
    assert decoder is not None
    if device.type == "cpu":
        prefill = decoder.prefill

        def limited(image_IQD: Any, image_of_N: Any, *rest: Any, **more: Any) -> Any:
            if len(image_of_N) > num_texts / 3:
                refused.append(len(image_of_N))
                raise torch.OutOfMemoryError("CUDA out of memory")
            return prefill(image_IQD, image_of_N, *rest, **more)

        with monkeypatch.context() as patch:
            patch.setattr(decoder, "prefill", limited)
            yield refused
        return
    torch.cuda.empty_cache()
    free = decoder.bytes_per_row(model.num_query_tokens + 8, 8) * num_texts / 3
    total = torch.cuda.get_device_properties(device).total_memory
    before = torch.cuda.memory_stats(device)["num_ooms"]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + free) / total, device)
    try:
        yield refused
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        refused += [0] * (torch.cuda.memory_stats(device)["num_ooms"] - before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layer", [Fp8Linear, GpuInt8Linear])
@torch.inference_mode()
def test_a_quantised_linear_gives_what_it_gives_on_a_cpu(device: str, layer: Any) -> None:
    if device == "cuda" and layer is Fp8Linear and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU cannot compute in fp8")
    torch.manual_seed(0)
    linear = nn.Linear(128, 256, dtype=torch.bfloat16)
    x = torch.randn(2, 57, 128).bfloat16()
    x[0, 3] = 0
    expected = layer(linear)(x)
    given = layer(linear.to(device))(x.to(device)).cpu()
    torch.testing.assert_close(given, expected, rtol=0.02, atol=0.02)
    assert torch.equal(given[0, 3], linear.bias.cpu())
