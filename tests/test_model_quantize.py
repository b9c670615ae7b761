"""Quantised layers are near the real ones, rows do not affect each other, and sensitive layers are not quantised."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blip2cap.decode.image import resize
from blip2cap.errors import ModelError, UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2 import int8_linear, quantize
from blip2cap.models.blip2.gpu_linear import Fp8Linear, GpuInt8Linear
from blip2cap.models.blip2.int8_linear import Int8Linear, cpu_can_int8
from blip2cap.models.blip2.load import load
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.checkpoint import find
from blip2cap.models.device import adds_int8_without_overflow
from blip2cap.options import ModelOptions
from blip2cap.records import Prompt
from blip2cap.tiny.scenes import draw
from tests.checkpoints import KINDS

CPU, GPU = torch.device("cpu"), torch.device("cuda")
needs_kernels = pytest.mark.skipif(not cpu_can_int8(), reason="this CPU, or this torch, has no 8-bit kernels")
CASES = [
    pytest.param(layer, dtype, id=f"{layer.__name__}-{dtype}", marks=marks)
    for layer, dtypes, marks in (
        (Int8Linear, (torch.float32, torch.bfloat16, torch.float16), needs_kernels),
        (GpuInt8Linear, (torch.float32, torch.bfloat16, torch.float16), ()),
        (Fp8Linear, (torch.bfloat16,), ()),
    )
    for dtype in dtypes
]
"""Each kind of layer with the dtypes that it takes; those for a GPU run on a CPU as well."""


def difference(given: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative difference of a row."""
    return float(((given.float() - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 48)


@pytest.mark.parametrize(("layer", "dtype"), CASES)
@pytest.mark.parametrize("shape", [(96,), (5, 96), (2, 20, 96)])
@torch.inference_mode()
def test_a_quantised_linear_is_near_the_real_one(layer: Any, dtype: torch.dtype, shape: Any, linear: nn.Linear) -> None:
    x = torch.randn(shape)
    expected = linear(x)
    given = layer(linear.to(dtype))(x.to(dtype))
    assert given.dtype == dtype
    assert given.shape == expected.shape
    # Without VNNI, rows on a CPU have 7 bits instead of 8, and twice the error: see _LARGEST_WITHOUT_VNNI.
    has_8_bits = layer is GpuInt8Linear or adds_int8_without_overflow()
    limit = 0.06 if layer is Fp8Linear else 0.02 if has_8_bits else 0.03
    assert 0 < difference(given, expected) < limit


@pytest.mark.parametrize(("layer", "dtype"), CASES)
@torch.inference_mode()
def test_the_real_weight_is_not_changed(layer: Any, dtype: torch.dtype, linear: nn.Linear) -> None:
    before = linear.to(dtype).weight.clone()
    layer(linear)
    assert torch.equal(linear.weight, before)


@pytest.mark.parametrize(("layer", "dtype"), CASES)
@torch.inference_mode()
def test_the_largest_of_every_row_keeps_its_sign_and_size(layer: Any, dtype: torch.dtype) -> None:
    one = nn.Linear(16, 16, bias=False, dtype=dtype)
    one.weight.copy_(torch.eye(16))
    x = torch.linspace(0.01, 9.0, 400).view(-1, 1) * torch.tensor([1.0, -1.0] * 8)
    given = layer(one)(x.to(dtype))
    torch.testing.assert_close(given.float(), x, rtol=0.02, atol=0)


@pytest.mark.parametrize(("layer", "dtype"), CASES)
@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours(layer: Any, dtype: torch.dtype, linear: nn.Linear) -> None:
    quantised = layer(linear.to(dtype))
    x = torch.randn(6, 96, dtype=dtype)
    loud = torch.cat([x, 1000 * torch.randn(40, 96).to(dtype)])
    assert torch.equal(quantised(loud)[:6], quantised(x))


@pytest.mark.parametrize(("layer", "dtype"), CASES)
@torch.inference_mode()
def test_a_row_of_zeros_gives_the_bias_and_disturbs_no_other(layer: Any, dtype: torch.dtype, linear: nn.Linear) -> None:
    quantised = layer(linear.to(dtype))
    x = torch.randn(3, 96, dtype=dtype)
    x[1] = 0
    given = quantised(x)
    torch.testing.assert_close(given[1], linear.bias)
    assert torch.equal(given[::2], quantised(x[::2]))
    assert given.isfinite().all()


@torch.inference_mode()
def test_a_weight_of_zeros_gives_the_bias() -> None:
    one = nn.Linear(32, 16, dtype=torch.bfloat16)
    one.weight[::2] = 0
    given = Fp8Linear(one)(torch.randn(4, 32, dtype=torch.bfloat16))
    assert given.isfinite().all()
    assert torch.equal(given[:, ::2], one.bias[::2].expand(4, 8))


@torch.inference_mode()
def test_fp8_is_as_exact_as_its_three_bits_allow_and_takes_the_largest_numbers() -> None:
    """Against a product in float32 of the same rounded numbers."""
    torch.manual_seed(0)
    one = nn.Linear(64, 32, dtype=torch.bfloat16)
    x = torch.randn(20, 64).bfloat16()
    x[3] *= 3e38 / x[3].abs().max()
    x[4] *= 1e-37
    given = Fp8Linear(one)(x)
    assert given.isfinite().all()
    scale = (x.abs().amax(1, keepdim=True) / 448).clamp(min=torch.finfo(torch.bfloat16).tiny)
    weight_scale = one.weight.float().abs().amax(1) / 448
    weight = (one.weight.float() / weight_scale[:, None]).to(torch.float8_e4m3fn).float() * weight_scale[:, None]
    rounded = (x / scale).to(torch.float8_e4m3fn).float() * scale.float()
    torch.testing.assert_close(given.float(), rounded @ weight.t() + one.bias.float(), rtol=0.01, atol=0.01)


@needs_kernels
@torch.inference_mode()
def test_processors_that_add_in_sixteen_bits_get_numbers_whose_sums_fit(
    monkeypatch: pytest.MonkeyPatch, linear: nn.Linear
) -> None:
    x = torch.randn(8, 96)
    expected = linear(x)
    monkeypatch.setattr(int8_linear, "adds_int8_without_overflow", lambda: False)
    layer = Int8Linear(linear)
    assert 2 * 127 * (layer.zero + layer.largest) < 2**15
    assert 0 < difference(layer(x), expected) < 0.04


def sensitive(name: str) -> bool:
    return not set(quantize.NEVER).isdisjoint(name.split("."))


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_all_but_what_is_sensitive_is_quantised(checkpoints: Callable[[str], Path], kind: str) -> None:
    folder = str(checkpoints(kind))
    plain = ModelOptions(name=folder, device="cpu", dtype="float32")
    options = ModelOptions(name=folder, device="cpu", dtype="float32", quantize="int8-dynamic")
    layers = dict(load(find(options), options).network.named_modules())
    quantised = {name for name, module in layers.items() if isinstance(module, Int8Linear)}
    whole = {name for name, module in layers.items() if type(module) is nn.Linear}
    assert not any(sensitive(name) for name in quantised)
    assert all(sensitive(name) for name in whole)
    assert {"language_projection", "language_model.lm_head"} <= whole
    assert any(name.startswith("qformer") for name in whole)
    for part in ("vision_model", "language_model"):
        assert any(name.startswith(part) for name in quantised)
    embeddings = load(find(plain), plain).network.vision_model.embeddings.state_dict()
    for name, weight in embeddings.items():
        assert torch.equal(weight, layers["vision_model"].embeddings.state_dict()[name])


def caption(model: Blip2) -> list[str]:
    pixels = [resize(draw(seed, (224, 168)).image, model.image_size).pixels_HWC for seed in range(3)]
    prompts = [Prompt(image=at, text="", name=str(at)) for at in range(3)]
    results = model.generate(model.encode(pixels), prompts, GenerateOptions())
    return [result[0].text for result in results if isinstance(result, list)]


@pytest.fixture(scope="module")
def plain_captions() -> list[str]:
    plain = ModelOptions(name="tiny", device="cpu", dtype="float32")
    return caption(load(find(plain), plain))


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_model_still_sees(dtype: str, plain_captions: list[str]) -> None:
    options = ModelOptions(name="tiny", device="cpu", dtype=dtype, quantize="int8-dynamic")
    model = load(find(options), options)
    assert model.dtype == getattr(torch, dtype)
    assert caption(model) == plain_captions


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp8"])
def test_what_needs_a_gpu_is_refused_on_a_cpu(kind: str) -> None:
    with pytest.raises(UsageError, match=f"quantize {kind}: needs a GPU. On a CPU there is quantize int8-dynamic"):
        quantize.check(ModelOptions(quantize=kind), CPU)


def test_a_cpu_without_the_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(UsageError, match="needs an x86 one"):
        quantize.check(ModelOptions(quantize="int8-dynamic"), CPU)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r'bitsandbytes is not installed. Run: pip install "blip2cap\[quant\]"'):
        quantize.check(ModelOptions(quantize=kind), GPU)


def test_gpus_without_fp8_are_told_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 3090")
    with pytest.raises(UsageError, match=r"RTX 3090 cannot compute in it. Use quantize int8-dynamic"):
        quantize.check(ModelOptions(quantize="fp8"), GPU)


def test_random_weights_cannot_be_quantised_while_they_are_read() -> None:
    with pytest.raises(UsageError, match="random weights exclude each other"):
        quantize.check(ModelOptions(quantize="nf4", random_weights=True), GPU)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("nf4", 4)])
def test_bitsandbytes_is_told_what_to_leave_whole(monkeypatch: pytest.MonkeyPatch, kind: str, bits: int) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.50.0")  # it need not be here
    config = quantize.config_while_reading(kind, torch.bfloat16)
    assert config is not None
    assert (config.load_in_8bit, config.load_in_4bit) == (bits == 8, bits == 4)
    assert {"qformer", "language_projection", "lm_head"} <= set(config.llm_int8_skip_modules)
    if bits == 4:
        assert config.bnb_4bit_quant_type == "nf4"
        assert config.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [None, "int8-dynamic", "fp8"])
def test_the_other_kinds_are_read_as_they_are(kind: str | None) -> None:
    assert quantize.config_while_reading(kind, torch.bfloat16) is None


def test_layers_that_fp8_cannot_take_stay_as_they_are() -> None:
    network = nn.ModuleDict({"fc1": nn.Linear(32, 48), "odd": nn.Linear(40, 48), "lm_head": nn.Linear(32, 48)})
    assert quantize.quantize(network, "fp8", CPU) == 1
    assert [type(layer) for layer in network.values()] == [Fp8Linear, nn.Linear, nn.Linear]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["int8", "nf4", "int8-dynamic", "fp8"])
def test_every_kind_sees_on_a_gpu(kind: str) -> None:
    options = ModelOptions(name="tiny", device="cuda", quantize=kind)
    try:
        quantize.check(options, GPU)
    except (ModelError, UsageError) as error:
        pytest.skip(str(error))
    plain = ModelOptions(name="tiny", device="cuda")
    given, expected = caption(load(find(options), options)), caption(load(find(plain), plain))
    assert sum(text == real for text, real in zip(given, expected, strict=True)) >= 2
