"""Files and bases that do not belong together are refused, with all names that do not fit; no code is loaded."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from blip2cap.errors import InputError, ModelError
from blip2cap.lavis.run import import_lavis
from blip2cap.options import ModelOptions
from tests.lavis import lavis_state, read_network, save, without_frozen


@pytest.fixture
def opt(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("opt")


@pytest.fixture
def state(opt: Path) -> dict[str, Tensor]:
    """All parameters of a small blip2_opt."""
    return lavis_state(read_network(opt), "opt")


def refusal(path: Path, base: Path | str) -> str:
    out = path.with_suffix(".out")
    with pytest.raises((InputError, ModelError)) as caught:
        import_lavis(path, ModelOptions(name=str(base)), out, say=print, quiet=True)
    assert [*path.parent.glob(f"*{out.name}*")] == []
    return caught.value.message


def test_missing_and_unknown_parameters_are_listed_with_equal_ones_counted(
    opt: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    for layer in (0, 1):
        del state[f"Qformer.bert.encoder.layer.{layer}.output_query.dense.bias"]
        state[f"visual_encoder.blocks.{layer}.gamma_1"] = torch.ones(32)
    del state["opt_model.model.decoder.final_layer_norm.weight"], state["visual_encoder.blocks.1.attn.q_bias"]
    state["visual_encoder.norm.weight"] = torch.ones(32)
    message = refusal(save(tmp_path / "checkpoint.pth", state), opt)
    assert f"checkpoint.pth: does not fit --base {opt}. unknown: visual_encoder.blocks.1.attn.v_bias, " in message
    assert "visual_encoder.blocks.*.gamma_1 (2), visual_encoder.norm.weight; missing, by their names in" in message
    for name in (
        "language_model.model.decoder.final_layer_norm.weight",
        "qformer.encoder.layer.*.output_query.dense.bias (2)",
        "vision_model.encoder.layers.1.self_attn.qkv.bias",
    ):
        assert name in message


@pytest.mark.parametrize("name", ["query_tokens", "ln_vision.bias", "opt_proj.bias"])
def test_what_lavis_always_trains_may_not_be_missing(
    name: str, opt: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    trained = without_frozen(state, "opt")
    del trained[name]
    assert "; missing" not in (message := refusal(save(tmp_path / "checkpoint.pth", trained), opt))
    assert "missing, by their names in transformers: " in message
    assert "(2)" not in message


def test_other_shapes_are_listed(opt: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    state["query_tokens"] = torch.zeros(1, 8, 32)
    state["visual_encoder.pos_embed"] = torch.zeros(1, 18, 32)
    state["opt_model.model.decoder.embed_tokens.weight"] = state["opt_model.lm_head.weight"] = torch.zeros(90, 32)
    message = refusal(save(tmp_path / "checkpoint.pth", state), opt)
    assert "of another shape: language_model.model.decoder.embed_tokens.weight [90, 32] instead of [77, 32]" in message
    assert "query_tokens [1, 8, 32] instead of [1, 4, 32]" in message
    assert "vision_model.embeddings.position_embedding [1, 18, 32] instead of [1, 17, 32]" in message


def test_a_base_of_another_model_is_refused(
    checkpoints: Callable[[str], Path], state: dict[str, Tensor], tmp_path: Path
) -> None:
    message = refusal(save(tmp_path / "checkpoint.pth", state), checkpoints("t5"))
    assert f"a checkpoint of LAVIS's blip2_opt. --base {checkpoints('t5')} is of another model (family t5)." in message
    assert "Expected the model that it was trained from, such as Salesforce/blip2-opt-2.7b." in message
    vicuna = lavis_state(read_network(checkpoints("instructblip-llama")), "instructblip-llama")
    message = refusal(save(tmp_path / "checkpoint.pth", vicuna), checkpoints("instructblip-t5"))
    assert "such as Salesforce/instructblip-vicuna-7b" in message


def test_embeddings_that_should_be_one_parameter_and_are_not_are_refused(
    opt: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    state["opt_model.lm_head.weight"] = state["opt_model.lm_head.weight"] + 1
    message = refusal(save(tmp_path / "checkpoint.pth", state), opt)
    assert "the word embeddings of its language model differ from each other" in message


def test_parameters_of_lora_are_named(opt: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    trained = without_frozen(state, "opt")
    for layer in (0, 1):
        name = f"opt_model.base_model.model.model.decoder.layers.{layer}.self_attn.q_proj.lora_A.default.weight"
        trained[name] = torch.zeros(4, 32)
    message = refusal(save(tmp_path / "checkpoint.pth", trained), opt)
    assert "opt_model.base_model.model.model.decoder.layers.*.self_attn.q_proj.lora_A.default.weight (2)" in message


@pytest.mark.parametrize("found_by", ["names", "configuration", "width"])
def test_clip_is_refused_with_the_reason(found_by: str, opt: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    trained, settings = without_frozen(state, "opt"), dict[str, Any]()
    if found_by == "names":
        trained["visual_encoder.transformer.resblocks.0.attn.in_proj_weight"] = torch.zeros(3, 3)
    elif found_by == "configuration":
        settings["vit_model"] = "clip_L"
    else:
        trained["ln_vision.weight"] = torch.ones(1024)
    message = refusal(save(tmp_path / "checkpoint.pth", trained, **settings), opt)
    assert "its vision encoder is CLIP ViT-L, which has a norm before its first layer" in message
    assert "vit_model: eva_clip_g" in message


def test_the_parameters_alone_are_a_checkpoint_too(opt: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "parameters.pth"
    torch.save(state, path)
    import_lavis(path, ModelOptions(name=str(opt)), tmp_path / "out", say=print, quiet=True)
    assert read_network(tmp_path / "out")


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("code was run"),)


def test_a_file_with_code_is_refused_and_its_code_is_not_run(opt: Path, here: Path) -> None:
    torch.save({"model": {}, "config": _Code()}, here / "checkpoint.pth")
    message = refusal(here / "checkpoint.pth", opt)
    assert "is not only tensors and plain values" in message
    assert "weights_only=False" in message
    assert not (here / "code was run").exists()


def write_damaged(path: Path, damage: str, state: dict[str, Tensor]) -> None:
    if damage == "truncated":
        save(path, state)
        path.write_bytes(path.read_bytes()[:-5000])
    elif damage == "a zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("letter.txt", "hello")
    elif damage == "a pickle":
        path.write_bytes(pickle.dumps({"model": {}}))
    elif damage == "old":
        torch.save({"model": state}, path, _use_new_zipfile_serialization=False)
    elif damage == "safetensors":
        save_file({"a": torch.ones(1)}, path)
    else:
        path.write_bytes(
            {"empty": b"", "a page": b"<html>\n404", "blank": b"\n\n", "a picture": b"\x89PNG\r\n"}[damage]
        )


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("truncated", "a zip file that is damaged, or that torch has not saved."),
        ("a zip", "a zip file that is damaged, or that torch has not saved."),
        ("empty", "an empty file."),
        ("a pickle", "a pickle, or a file of torch before 1.6."),
        ("old", "a pickle, or a file of torch before 1.6."),
        ("safetensors", "a safetensors file."),
        ("a page", 'a text that begins "<html>".'),
        ("blank", 'a text that begins "".'),
        ("a picture", "no file of torch: it begins with the bytes 89 50 4e 47 0d 0a."),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_what_it_is_and_what_was_expected(
    damage: str, found: str, opt: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pth"
    write_damaged(path, damage, state)
    message = refusal(path, opt)
    assert message.startswith(f"{path}: {found} Expected a checkpoint of LAVIS, such as checkpoint_best.pth: a zip")
    assert "mmap" not in message


def test_an_old_file_is_read_once_it_is_saved_again_as_the_message_says(
    opt: Path, state: dict[str, Tensor], here: Path
) -> None:
    write_damaged(here / "old.pth", "old", state)
    refusal(here / "old.pth", opt)
    torch.save(torch.load("old.pth", map_location="cpu", weights_only=True), "new.pth")
    import_lavis(here / "new.pth", ModelOptions(name=str(opt)), here / "out", say=print, quiet=True)
    assert read_network(here / "out")


@pytest.mark.parametrize(
    "content", [[1, 2], {"model": {}}, {"model": {"a": 1}}, {"epoch": 3}, {"model": {5: torch.ones(1)}}]
)
def test_a_file_without_parameters_is_refused(content: Any, opt: Path, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "checkpoint.pth")
    assert "holds no parameters. Expected what LAVIS saves" in refusal(tmp_path / "checkpoint.pth", opt)


def test_a_model_that_is_none_of_blip2_is_refused(opt: Path, tmp_path: Path) -> None:
    torch.save({"model": {"text_decoder.bert.weight": torch.ones(1)}}, tmp_path / "checkpoint.pth")
    message = refusal(tmp_path / "checkpoint.pth", opt)
    assert "no parameter that tells which model it is of" in message
    assert "it has text_decoder.bert.weight" in message


@pytest.mark.parametrize("config", [[1], {"model": "blip2"}])
def test_a_configuration_of_another_program_says_nothing(config: Any, opt: Path, tmp_path: Path) -> None:
    torch.save({"model": {"opt_proj.weight": torch.ones(2, 2)}, "config": config}, tmp_path / "checkpoint.pth")
    assert f"does not fit --base {opt}" in refusal(tmp_path / "checkpoint.pth", opt)


def test_a_missing_file_is_an_input_error(opt: Path, tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "checkpoint.pth", opt)


def test_a_base_that_cannot_be_used_is_named_by_its_flag(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoint.pth", state)
    message = refusal(path, "./nothing")
    assert message.startswith("--base ./nothing: no such folder.")
    assert "--model" not in message
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert refusal(path, tmp_path / "base").startswith(f"--base {tmp_path / 'base'}: model_type 'bert'")


def test_a_base_with_damaged_weights_is_refused(opt: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in opt.iterdir():
        (base / path.name).write_bytes(path.read_bytes()[: 1000 if path.suffix == ".safetensors" else None])
    message = refusal(save(tmp_path / "checkpoint.pth", state), base)
    assert f"--base {base}: model.safetensors cannot be read: " in message
