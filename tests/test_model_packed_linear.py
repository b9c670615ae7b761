"""Packed layers compute what plain ones do, and are left out where they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from blip2cap.models.blip2 import linear_layers
from blip2cap.models.blip2.linear_layers import PackedLinear, pack
from blip2cap.models.blip2.load import load
from blip2cap.models.checkpoint import find
from blip2cap.options import ModelOptions
from tests.checkpoints import KINDS

needs_kernels = pytest.mark.skipif(
    not linear_layers.can_pack(), reason="this CPU, or this torch, has no bfloat16 kernels"
)


@needs_kernels
@pytest.mark.parametrize("shape", [(5, 96), (2, 3, 96), (1, 96)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_gives_what_a_plain_one_gives(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 40, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(shape, dtype=torch.bfloat16)
    with torch.inference_mode():
        y = PackedLinear(linear)(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, linear(x), rtol=2**-7, atol=2**-7)


@needs_kernels
def test_only_bfloat16_is_packed() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, dtype=torch.bfloat16), nn.Linear(8, 8, dtype=torch.half))
    assert pack(network) == 1
    assert [type(layer) for layer in network] == [nn.Linear, PackedLinear, nn.Linear]


def test_without_the_kernels_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_layers, "has_onednn", lambda: False)
    network = nn.Sequential(nn.Linear(8, 8, dtype=torch.bfloat16))
    assert pack(network) == 0
    assert type(network[0]) is nn.Linear


@needs_kernels
def test_a_head_that_shares_its_weight_is_packed_and_the_embedding_stays(checkpoints: Callable[[str], Path]) -> None:
    options = ModelOptions(name=str(checkpoints("opt")), device="cpu", dtype="bfloat16")
    language_model = load(find(options), options).network.language_model
    head, table = language_model.lm_head, language_model.get_input_embeddings()
    assert isinstance(head, PackedLinear)
    x = torch.randn(3, 32, dtype=torch.bfloat16)
    expected = nn.functional.linear(x, table.weight)
    torch.testing.assert_close(head(x), expected, rtol=2**-7, atol=2**-7)


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_bfloat16_on_a_cpu_is_packed_whole_and_in_float32_not_at_all(
    checkpoints: Callable[[str], Path], kind: str
) -> None:
    folder = str(checkpoints(kind))
    kinds: dict[str, set[type[nn.Module]]] = {"bfloat16": {PackedLinear}, "float32": {nn.Linear}}
    for dtype, expected in kinds.items():
        options = ModelOptions(name=folder, device="cpu", dtype=dtype)
        model = load(find(options), options)
        layers = {type(module) for module in model.network.modules()} & {nn.Linear, PackedLinear}
        assert layers == expected
        assert model.dtype == getattr(torch, dtype)
