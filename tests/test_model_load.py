"""Loading leaves no weight at random and ignores no setting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip2cap.errors import ModelError, UsageError
from blip2cap.model.checkpoint import TINY, find
from blip2cap.model.load import choose_device, choose_dtype, load
from blip2cap.options import ModelOptions
from tests.checkpoints import make_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def load_folder(folder: Path) -> None:
    options = ModelOptions(name=str(folder), device="cpu")
    load(find(options), options)


def test_the_tiny_model_loads_in_float32_on_a_cpu() -> None:
    options = ModelOptions(name="tiny", device="cpu")
    model = load(find(options), options)
    assert model.dtype == torch.float32
    assert model.family == "opt"
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
    assert load(find(options), options)._mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_old_snapshots_without_an_image_token_load(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_token_index": None}))
    load_folder(folder)


def test_float16_is_refused_for_t5(tmp_path: Path) -> None:
    checkpoint = find(ModelOptions(name=str(make_checkpoint(tmp_path, "t5"))))
    with pytest.raises(UsageError, match="overflows"):
        choose_dtype("float16", torch.device("cpu"), checkpoint)
    assert choose_dtype("auto", torch.device("cpu"), checkpoint) == torch.float32


def test_a_gpu_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--device cpu"):
        choose_device(f"cuda:{torch.cuda.device_count()}")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_takes_the_gpu_and_half_precision() -> None:
    options = ModelOptions(name="tiny")
    model = load(find(options), options)
    assert model.device.type == "cuda"
    assert model.dtype in (torch.bfloat16, torch.float16)
