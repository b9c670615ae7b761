"""Folders with an adapter stand for the model that they change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip2cap.errors import Blip2CapError, ModelError, UsageError
from blip2cap.lavis.base import find_base
from blip2cap.models.blip2.model import NETWORK_CLASSES
from blip2cap.models.checkpoint import find
from blip2cap.models.loading import read_network
from blip2cap.options import ModelOptions
from blip2cap.train.options.model import TuneOptions
from tests.training import read_base

QUERY = "language_model.model.decoder.layers.0.self_attn.q_proj.weight"
STEM = f"base_model.model.{QUERY.removesuffix('.weight')}"


@pytest.fixture
def adapter(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder with an adapter of rank 2 of one layer."""
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(checkpoints("opt")),
        "r": 2,
        "lora_alpha": 6,
        "bias": "none",
        "use_dora": False,
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{STEM}.lora_A.weight": torch.randn(2, 32, generator=generator),
        f"{STEM}.lora_B.weight": torch.randn(32, 2, generator=generator),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda name: find_base(ModelOptions(name=name), say=print, quiet=True),
            "an adapter. Give the model that LAVIS",
        ),
        (
            lambda name: read_base(name, tune=TuneOptions(train=("lora",), no_merge=True)),
            "is an adapter itself, and the new one would be for the model with it. Leave no_merge out",
        ),
    ],
)
def test_an_adapter_is_refused_where_its_model_would_be_used_without_it(
    adapter: Path, use: Callable[[str], object], message: str
) -> None:
    with pytest.raises(Blip2CapError, match=message):
        use(str(adapter))


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def read(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> dict[str, torch.Tensor]:
    checkpoint = find(ModelOptions(name=str(folder)))
    network = read_network(NETWORK_CLASSES[checkpoint.family], checkpoint, dtype=dtype, **settings)
    state: dict[str, torch.Tensor] = network.state_dict()
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_added_to_the_weights_of_its_model(
    adapter: Path, checkpoints: Callable[[str], Path], dtype: torch.dtype
) -> None:
    found, plain = read(adapter, dtype), read(checkpoints("opt"), dtype)
    tensors = load_file(adapter / "adapter_model.safetensors")
    product = tensors[f"{STEM}.lora_B.weight"] @ tensors[f"{STEM}.lora_A.weight"]
    torch.testing.assert_close(found.pop(QUERY), (plain.pop(QUERY).float() + 3 * product).to(dtype))
    assert [name for name, value in found.items() if not torch.equal(value, plain[name])] == []


def test_another_adapter_is_another_model(adapter: Path, checkpoints: Callable[[str], Path]) -> None:
    first = find(ModelOptions(name=str(adapter)))
    assert first.family == "opt"
    assert first.folder == checkpoints("opt")
    change(adapter, lora_alpha=8)
    assert find(ModelOptions(name=str(adapter))).commit != first.commit


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, r"an adapter of another kind \(IA3\). Expected plain LoRA: merge it"),
        ({"use_dora": True}, r"an adapter of another kind \(LORA, use_dora\)"),
        ({"modules_to_save": ["qformer"]}, r"another kind \(LORA, modules_to_save\)"),
        ({"rank_pattern": {"q_proj": 3}}, r"another kind \(LORA, rank_pattern\)"),
        ({"bias": "all"}, "an adapter of another kind"),
        ({"base_model_name_or_path": None}, "expected base_model_name_or_path, r and lora_alpha"),
        ({"r": 0}, "expected base_model_name_or_path, r and lora_alpha"),
        ({"base_model_name_or_path": "./nowhere"}, r"\./nowhere: no such folder"),
    ],
)
def test_adapters_of_other_kinds_are_refused(adapter: Path, settings: dict[str, Any], message: str) -> None:
    change(adapter, **settings)
    with pytest.raises(ModelError, match=message):
        find(ModelOptions(name=str(adapter)))


def test_an_adapter_of_an_adapter_is_refused(adapter: Path) -> None:
    change(adapter, base_model_name_or_path=str(adapter))
    with pytest.raises(ModelError, match="an adapter of another one"):
        find(ModelOptions(name=str(adapter)))


def test_an_adapter_without_weights_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"an adapter without weights. Expected adapter_model\.safetensors"):
        find(ModelOptions(name=str(adapter)))


def test_tensors_without_a_place_are_an_error(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    # The weight of the head is that of the embeddings: to change it would change both.
    other = {name.replace("model.decoder.layers.0.self_attn.q_proj", "lm_head"): each for name, each in tensors.items()}
    save_file(other, adapter / "adapter_model.safetensors")
    with pytest.raises(
        ModelError, match=r"does not fit its model .*: 2 tensors have no place there, such as .*lm_head"
    ):
        read(adapter)


def test_quantised_weights_take_no_adapter(adapter: Path) -> None:
    with pytest.raises(UsageError, match="cannot be added to weights of 4 or 8 bits"):
        read(adapter, quantization_config={"load_in_4bit": True})
