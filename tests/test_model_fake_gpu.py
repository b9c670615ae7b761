"""The real code on a GPU that is not there, in the real widths of published models: devices, waiting, operations."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import Result
from blip2cap.models.blip2.gpu_linear import Fp8Linear, GpuInt8Linear
from blip2cap.models.blip2.model import Blip2
from blip2cap.records import Prompt
from tests.fake_gpu import READS, Gpu, fake_gpu, load_fake

NAMES = {
    "opt": "Salesforce/blip2-opt-2.7b",
    "t5": "Salesforce/blip2-flan-t5-xl",
    "instructblip": "Salesforce/instructblip-flan-t5-xl",
}
NEW_TOKENS = 3
SEARCHES = {
    "greedy": GenerateOptions(max_new_tokens=NEW_TOKENS),
    "sampling": GenerateOptions(max_new_tokens=NEW_TOKENS, temperature=0.7, top_k=50, top_p=0.9, num_captions=2),
    "beams": GenerateOptions(max_new_tokens=NEW_TOKENS, num_beams=3),
    "rules": GenerateOptions(
        max_new_tokens=NEW_TOKENS, min_new_tokens=2, repetition_penalty=1.4, no_repeat_ngram_size=2
    ),
}
IMAGES = [np.zeros((224, 224, 3), np.uint8)] * 4
PROMPTS = [Prompt(image=at % 4, text=text, name=str(at)) for at, text in enumerate(("a photo of", "", "w1 w2") * 2)]
"""Six prompts of three lengths about four images: slots are freed, filled and moved."""


@functools.cache
def model_of(family: str) -> Blip2:
    """One layer of each part, whose widths are real: more depth adds nothing."""
    with fake_gpu():
        model: Blip2 = load_fake(NAMES[family], num_layers=1, dtype="bfloat16")
        return model


@functools.cache
def run(family: str, search: str) -> tuple[list[Result], Gpu]:
    """Generate texts about images; return them, and what the GPU did after the images were encoded."""
    model = model_of(family)
    with fake_gpu() as gpu:
        features = model.encode(IMAGES)
        gpu.forget()
        return model.generate(features, PROMPTS, SEARCHES[search], capacity=4), gpu


@pytest.mark.parametrize(
    ("family", "search"),
    [*(("opt", search) for search in SEARCHES), ("t5", "greedy"), ("t5", "beams"), ("instructblip", "greedy")],
)
def test_whole_texts_are_generated_with_every_tensor_on_one_device(family: str, search: str) -> None:
    results, gpu = run(family, search)
    assert [len(result) for result in results] == [SEARCHES[search].num_captions] * len(PROMPTS)  # type: ignore[arg-type]
    assert "linear" in gpu.operations


def test_an_index_on_the_cpu_is_found() -> None:
    """The reason for the test above: torch accepts such an index, and waits for the GPU to copy it."""
    model = model_of("opt")
    with fake_gpu():
        cache = model.decoder.new_cache(4, 34, NEW_TOKENS)  # type: ignore[union-attr]
        ids = torch.zeros(4, dtype=torch.long, device="cuda")
        model.decoder.step(ids, ids, cache, cache.length)  # type: ignore[union-attr]
        with pytest.raises(AssertionError, match="of tensors on cpu and cuda:0"):
            model.decoder.step(ids, torch.zeros(4, dtype=torch.long), cache, cache.length)  # type: ignore[union-attr]
        with pytest.raises(AssertionError, match="index of tensors on cpu and cuda:0"):
            cache.own_L2RHSK[0, 0][torch.arange(2)]


@pytest.mark.parametrize("family", ["opt", "t5", "instructblip"])
def test_an_encode_never_waits_for_the_device(family: str) -> None:
    with fake_gpu() as gpu:
        features = model_of(family).encode(IMAGES)
    assert features.device.type == "cuda"
    assert (gpu.reads, gpu.num_uploads) == ([], 0)


def num_asked(gpu: Gpu) -> int:
    """Return how often the host asked for a value, other than by copies."""
    return sum(read in READS for read in gpu.reads)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_matching_model_never_waits_for_the_device_but_to_read_scores(dtype: str) -> None:
    """Two batches of images; the scores of the first are read when the second is queued."""
    with fake_gpu() as gpu:
        model = load_fake("Salesforce/blip2-itm-vit-g", num_layers=2, dtype=dtype)
        session = model.start_match(capacity=None)
        gpu.forget()
        features = session.encode(IMAGES)
        assert (gpu.reads, gpu.num_uploads, gpu.num_waits) == ([], 0, 0)
        session.add(features, [prompt for prompt in PROMPTS if prompt.text])
        assert session.advance() == []
        tickets = session.add(session.encode(IMAGES), PROMPTS[:1])
        assert (num_asked(gpu), gpu.num_uploads, gpu.num_waits) == (0, 0, 0)
        first, second = session.advance(), session.advance()
        assert ([len(first), len(second)], session.num_pending) == ([4, 1], 0)
        assert [ticket for ticket, _ in second] == tickets
        assert (num_asked(gpu), gpu.num_uploads, gpu.num_waits) == (0, 0, 2)


@pytest.mark.parametrize("family", ["opt", "instructblip", "matching"])
def test_embedding_never_waits_for_the_device_but_to_read_vectors(family: str) -> None:
    with fake_gpu() as gpu:
        name = NAMES.get(family, "Salesforce/blip2-itm-vit-g")
        session = load_fake(name, num_layers=1, dtype="bfloat16").start_embed("qformer", normalised=True, capacity=None)
        gpu.forget()
        for batch in range(2):
            session.add(session.encode(IMAGES), PROMPTS[:4])
            assert (num_asked(gpu), gpu.num_uploads, gpu.num_waits) == (0, 0, 0)
            assert len(session.advance()) == 4 * batch
        found = {ticket: vectors.shape for ticket, vectors in session.advance()}
        assert found == dict.fromkeys(range(4, 8), (32, 768))


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_a_step_of_a_decoder_never_waits_for_the_device(family: str) -> None:
    model = model_of(family)
    assert model.decoder is not None
    with fake_gpu() as gpu:
        cache = model.decoder.new_cache(4, 34, NEW_TOKENS)
        ids = torch.zeros(4, dtype=torch.long, device="cuda")
        gpu.forget()
        assert model.decoder.step(ids, ids, cache, cache.length).device.type == "cuda"
    assert (gpu.reads, gpu.num_uploads) == ([], 0)


@pytest.mark.parametrize("family", ["opt", "t5", "instructblip"])
def test_between_encode_and_texts_nothing_is_asked_of_the_device(family: str) -> None:
    """Only ids are read, by copies."""
    _, gpu = run(family, "greedy")
    assert READS.isdisjoint(gpu.reads), gpu.reads


@pytest.mark.parametrize("search", ["greedy", "sampling", "beams"])
def test_ids_are_read_at_most_once_a_step(search: str) -> None:
    """Two groups of texts, one after the other, take a step for each token."""
    _, gpu = run("opt", search)
    num_groups = len(PROMPTS) * (2 if search == "sampling" else 1) / 4
    assert 0 < len(gpu.reads) + gpu.num_waits <= np.ceil(num_groups) * (NEW_TOKENS + 1)


def test_reads_and_uploads_are_counted() -> None:
    with fake_gpu() as gpu:
        x = torch.ones(3, device="cuda")
        for read in (x.cpu, x.tolist, x.sum().item, x.all, lambda: bool(x[0] > 0), lambda: torch.equal(x, x)):
            gpu.forget()
            read()
            assert len(gpu.reads) == (read != x.all)
        gpu.forget()
        torch.tensor([1, 2], device="cuda")
        torch.ones(2).to("cuda")
        assert (gpu.reads, gpu.num_uploads) == ([], 2)
        torch.ones(2).to("cuda", non_blocking=True)
        x.to("cpu", non_blocking=True)
        assert (gpu.reads, gpu.num_uploads) == ([], 2)


@pytest.mark.long
def test_an_encode_and_a_step_of_opt_take_no_more_operations_than_they_did() -> None:
    """At full depth. On a GPU each costs the host some microseconds; these figures may only fall."""
    with fake_gpu() as gpu:
        model = load_fake(NAMES["opt"], dtype="bfloat16")
        assert model.decoder is not None
        gpu.forget()
        model.encode(IMAGES)
        assert 500 < len(gpu.operations) <= 595
        cache = model.decoder.new_cache(4, 34, NEW_TOKENS)
        ids = torch.zeros(4, dtype=torch.long, device="cuda")
        gpu.forget()
        model.decoder.step(ids, ids, cache, cache.length)
        assert 350 < len(gpu.operations) <= 428


@pytest.mark.parametrize(("layer", "most"), [(Fp8Linear, 7), (GpuInt8Linear, 11)])
def test_a_quantised_linear_takes_few_operations(layer: type[nn.Module], most: int) -> None:
    with fake_gpu() as gpu:
        linear = nn.Linear(1408, 6144, dtype=torch.bfloat16, device="cuda")
        quantised = layer(linear)
        gpu.forget()
        assert quantised(torch.empty(2, 257, 1408, dtype=torch.bfloat16, device="cuda")).shape == (2, 257, 6144)
    assert len(gpu.operations) <= most, gpu.operations
    assert (gpu.reads, gpu.num_uploads) == ([], 0)


@torch.inference_mode()
def test_torch_takes_the_shapes_strides_and_scales_of_fp8_on_a_gpu() -> None:
    """Torch checks them where it sees its own fake tensors."""
    with FakeTensorMode():
        linear = nn.Linear(1408, 4224, dtype=torch.bfloat16, device="meta")
        linear.weight = nn.Parameter(torch.empty(4224, 1408, dtype=torch.bfloat16, device="cuda"))
        linear.bias = nn.Parameter(torch.empty(4224, dtype=torch.bfloat16, device="cuda"))
        layer = Fp8Linear(linear)
        for num_rows in (1, 7, 512):
            y = layer(torch.empty(num_rows, 1408, dtype=torch.bfloat16, device="cuda"))
            assert (y.shape, y.dtype) == ((num_rows, 4224), torch.bfloat16)
        layer.scale_1O = torch.empty(4224, device="cuda")
        with pytest.raises(RuntimeError, match="2D"):  # what the test is for
            layer(torch.empty(7, 1408, dtype=torch.bfloat16, device="cuda"))
