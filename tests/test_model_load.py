"""Loading leaves no weight at random and ignores no setting."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from blip2cap.errors import ModelError, UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.int8_linear import Int8Linear
from blip2cap.models.blip2.load import load
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.checkpoint import TINY, find
from blip2cap.models.device import choose_dtype
from blip2cap.options import ModelOptions
from blip2cap.records import Prompt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def load_folder(folder: Path) -> None:
    options = ModelOptions(name=str(folder), device="cpu")
    load(find(options), options)


def test_the_tiny_model_loads_on_a_cpu() -> None:
    options = ModelOptions(name="tiny", device="cpu")
    model = load(find(options), options)
    assert model.dtype == choose_dtype("auto", torch.device("cpu"), find(options))
    assert model.checkpoint.family == "opt"
    assert not model.network.training


def test_a_missing_weight_is_an_error_that_names_it(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["query_tokens"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="query_tokens"):
        load_folder(folder)


def test_a_weight_of_another_shape_is_an_error(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["query_tokens"] = weights["query_tokens"][:, :3].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"query_tokens|cannot be loaded"):
        load_folder(folder)


def test_a_damaged_weight_file_is_an_error(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not safetensors at all")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("resample", 2),
        ("do_center_crop", True),
        ("do_normalize", False),
        ("do_resize", False),
        ("rescale_factor", 1.0),
        ("size", {"height": 112, "width": 96}),
        ("size", {"shortest_edge": 112}),
    ],
)
def test_an_image_processor_that_works_otherwise_is_refused(folder: Path, setting: str, value: object) -> None:
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"][setting] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=setting):
        load_folder(folder)


def test_mean_and_deviation_come_from_either_place_where_they_are_kept(folder: Path) -> None:
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())["image_processor"] | {"image_mean": [0.1, 0.2, 0.3]}
    path.unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    options = ModelOptions(name=str(folder), device="cpu")
    assert load(find(options), options).mean == pytest.approx([0.1, 0.2, 0.3])


def test_a_tokenizer_of_another_model_is_refused_by_its_size(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1])[:100])
    content["model"]["merges"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="its tokenizer has 100 tokens, the model 441"):
        load_folder(folder)


def test_old_snapshots_without_an_image_token_load(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_token_index": None}))
    load_folder(folder)


def test_a_model_is_spread_over_gpus_only_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = ModelOptions(name="tiny", device_map="auto")
    with pytest.raises(UsageError, match=r"device_map auto: .* sees no GPU"):
        load(find(options), options)


def test_weights_that_do_not_fit_a_gpu_are_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(network: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("blip2cap.models.blip2.load.fuse", fail)
    options = ModelOptions(name="tiny", device="cpu")
    with pytest.raises(ModelError, match=r"does not fit the GPU. Try quantize int8 or nf4, or device_map auto"):
        load(find(options), options)


@pytest.mark.parametrize("quantized", [None, "int8-dynamic"])
def test_random_weights_are_loaded_as_real_ones_are(folder: Path, quantized: str | None) -> None:
    for file in folder.iterdir():
        if file.is_file() and file.name != "config.json":
            file.unlink()
    options = ModelOptions(name=str(folder), device="cpu", random_weights=True, quantize=quantized)
    model = load(find(options), options)
    assert model.checkpoint.family == "opt"
    assert len(model.tokenizer) == model.network.config.text_config.vocab_size
    assert model.mean == pytest.approx([0.4815, 0.4578, 0.4082], abs=1e-3)
    layer = model.network.vision_model.encoder.layers[0].mlp.fc1
    assert isinstance(layer, Int8Linear) == (quantized is not None)


def test_random_weights_come_with_the_real_tokenizer_where_there_is_one() -> None:
    options = ModelOptions(name="tiny", device="cpu", random_weights=True)
    assert load(find(options), options).tokenizer.decode([200]) != "t200"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_takes_the_gpu_and_half_precision() -> None:
    options = ModelOptions(name="tiny")
    model = load(find(options), options)
    assert model.device.type == "cuda"
    assert model.dtype in (torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda network: setattr(network, "hf_device_map", {"a": 0, "b": 1}), "spread over several devices"),
        (
            lambda network: network.language_model.generation_config.update(suppress_tokens=[7]),
            "generation config sets suppress_tokens",
        ),
    ],
)
def test_what_the_lean_decoder_cannot_do_goes_through_transformers_and_is_said(
    folder: Path, change: Callable[[Any], None], why: str
) -> None:
    options = ModelOptions(name=str(folder), device="cpu", dtype="float32")
    model = load(find(options), options)
    assert model.fallback_reason == ""
    change(model.network)
    again = Blip2(model.network, model.tokenizer, checkpoint=model.checkpoint, mean=model.mean, std=model.std)
    assert why in again.fallback_reason
    features = again.encode([np.zeros((model.image_size, model.image_size, 3), dtype=np.uint8)])
    prompt = Prompt(image=0, text="a photo of", name="")
    greedy = GenerateOptions(max_new_tokens=4)
    if "several" in why:
        assert again.generate(features, [prompt], greedy) == model.generate(features, [prompt], greedy)
    (result,) = again.generate(features, [prompt], greedy)
    assert isinstance(result, list)
