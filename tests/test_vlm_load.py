"""Checkpoints of vision-language models: what their files must have, and options that they do not take."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from blip2cap.decode.inputs import ResizedInput
from blip2cap.errors import ModelError, UsageError
from blip2cap.models.checkpoint import find
from blip2cap.models.registry import FAMILIES, load
from blip2cap.models.vlm import load as vlm_load
from blip2cap.models.vlm.families import VLM_FAMILIES
from blip2cap.models.vlm.model import Vlm
from blip2cap.options import ModelOptions


@pytest.fixture
def folder(vlm_checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a small LLaVA, to be changed."""
    return Path(shutil.copytree(vlm_checkpoints("llava"), tmp_path / "llava"))


def options_of(folder: Path, **settings: object) -> ModelOptions:
    return ModelOptions(name=str(folder), device="cpu", **settings)  # type: ignore[arg-type]


def test_a_checkpoint_without_a_chat_template_is_refused_before_its_weights_are_looked_at(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    template = folder / "chat_template.jinja"
    text = template.read_text()
    template.unlink()
    with pytest.raises(ModelError, match=r"no chat template in .*llava\. Expected chat_template\.jinja or chat_temp"):
        find(options_of(folder))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": text}))
    with pytest.raises(ModelError, match=r"has no weights\. Expected model\.safetensors"):
        find(options_of(folder))


def test_a_checkpoint_without_a_processor_is_refused(folder: Path) -> None:
    for path in (*folder.glob("*processor_config.json"),):
        path.unlink()
    with pytest.raises(ModelError, match=r"no processor in .* Expected processor_config\.json or preprocessor_conf"):
        find(options_of(folder))


def test_another_chat_template_is_another_checkpoint(folder: Path) -> None:
    before = find(options_of(folder)).commit
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("ASSISTANT", "MODEL"))
    assert find(options_of(folder)).commit != before


def test_a_generation_config_that_only_transformers_knows_is_said(folder: Path) -> None:
    options = options_of(folder)
    assert load(find(options), options).fallback_reason == ""
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"suppress_tokens": [7]}))
    reason = load(find(options), options).fallback_reason
    assert reason == "the checkpoint's generation config sets suppress_tokens"


@pytest.mark.parametrize("family", [name for name, each in VLM_FAMILIES.items() if each.packages])
def test_a_package_that_the_processor_needs_is_named_with_its_extra(
    folder: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ModelError, match=rf"{family} needs torchvision.* Run: pip install 'blip2cap\[vlm\]'"):
        find(options_of(folder))


def test_an_older_transformers_without_the_family_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = find(options_of(folder))
    monkeypatch.setattr(vlm_load, "CONFIG_MAPPING", {"blip-2": None})
    with pytest.raises(ModelError, match=r"transformers [0-9.]+ has no llava\. Update it"):
        load(checkpoint, options_of(folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantize": "int8-dynamic"}, r"quantize int8-dynamic: for BLIP-2 only\. For this model use quantize int8"),
        ({"quantize": "nf4"}, r"quantize nf4: needs a GPU\. Leave it out\."),
    ],
)
def test_options_that_these_models_do_not_take_are_refused(
    folder: Path, settings: dict[str, object], message: str
) -> None:
    options = options_of(folder, **settings)
    with pytest.raises(UsageError, match=message):
        load(find(options), options)


def test_gemma_3_overflows_float16(vlm_checkpoints: Callable[[str], Path]) -> None:
    options = options_of(vlm_checkpoints("gemma3"), dtype="float16")
    with pytest.raises(UsageError, match=r"dtype float16: gemma3 overflows in it\. Use bfloat16 or float32"):
        load(find(options), options)


def test_a_damaged_processor_is_an_error_of_the_model(folder: Path) -> None:
    path = folder / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_class": "NoSuchProcessor"}))
    with pytest.raises(ModelError, match=r"no processor of images and texts, but a TokenizersBackend"):
        load(find(options_of(folder)), options_of(folder))


def test_a_missing_weight_is_an_error_and_random_weights_need_none(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    options = options_of(folder, random_weights=True, max_pixels=500, dtype="bfloat16")
    checkpoint = find(options)
    first, second = (load(checkpoint, options) for _ in range(2))
    assert isinstance(first, Vlm)
    assert isinstance(second, Vlm)
    assert first.dtype == torch.bfloat16
    assert (first.ends, first.quantize, first.on_cpu) == (frozenset(), None, True)
    pairs = zip(first.network.parameters(), second.network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert first.image_input == FAMILIES["llava"].image_input(checkpoint, options) == ResizedInput(500)
