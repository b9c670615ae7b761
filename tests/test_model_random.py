"""Any known checkpoint at its full size without its weights: shapes, dtypes, ties and buffers as loading gives them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration

from blip2cap.errors import ModelError, UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2.instructblip import InstructBlip
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.blip2.random_weights import build, stand_in_tokenizer
from blip2cap.models.checkpoint import KNOWN, TINY, find
from blip2cap.options import ModelOptions
from blip2cap.records import Prompt
from tests.checkpoints import KINDS

CPU, META = torch.device("cpu"), torch.device("meta")
BILLIONS = {
    "blip2-opt-2.7b": (2.65, 3.74),
    "blip2-opt-6.7b": (6.66, 7.75),
    "blip2-flan-t5-xl": (2.85, 3.94),
    "blip2-flan-t5-xxl": (11.14, 12.23),
    "instructblip-flan-t5-xl": (2.85, 4.02),
    "instructblip-vicuna-7b": (6.74, 7.91),
}
"""Billions of parameters of the language model, as its authors count them, and of the complete model."""


def find_random(name: str | Path) -> Checkpoint:
    return find(ModelOptions(name=str(name), random_weights=True))


@pytest.fixture(scope="module", params=KINDS)
def real(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path]) -> Path:
    """A checkpoint with weights and tokenizer."""
    return checkpoints(request.param)


@pytest.fixture(scope="module")
def checkpoint(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The same without weights and tokenizer: a folder with config.json and nothing else."""
    folder = tmp_path_factory.mktemp("config")
    shutil.copy(real / "config.json", folder)
    return find_random(folder)


def count(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e9


def test_every_known_name_is_tested_here() -> None:
    assert {path.stem for path in KNOWN.glob("*.json")} == {*BILLIONS, "blip2-itm-vit-g"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name == "blip2-opt-2.7b" else [pytest.mark.long]) for name in BILLIONS],
)
def known(request: pytest.FixtureRequest) -> tuple[str, Checkpoint, Any]:
    """The name of a known checkpoint, the checkpoint, and its network without memory."""
    checkpoint = find_random(request.param)
    return request.param, checkpoint, build(checkpoint, torch.bfloat16, META)


def test_known_checkpoints_have_as_many_parameters_as_the_real_ones(known: tuple[str, Checkpoint, Any]) -> None:
    name, checkpoint, network = known
    language_model, whole = BILLIONS[name]
    assert count(network.vision_model) == pytest.approx(0.986, abs=0.001)
    assert count(network.language_model) == pytest.approx(language_model, abs=0.01)
    assert count(network) == pytest.approx(whole, abs=0.01)
    assert checkpoint.image_size == 224
    assert 0 < checkpoint.config["image_token_index"] < network.config.text_config.vocab_size


def test_known_configurations_say_what_the_classes_take_from_them(known: tuple[str, Checkpoint, Any]) -> None:
    _, checkpoint, network = known
    built = network.config.to_dict()
    for part, settings in checkpoint.config.items():
        if isinstance(settings, dict):
            changed = {key for key, value in settings.items() if built[part][key] != value}
            assert changed <= {"tie_word_embeddings"}, "a misspelt name would be passed over"


def test_the_known_matching_model_has_as_many_parameters_as_the_real_one() -> None:
    checkpoint = find_random("Salesforce/blip2-itm-vit-g")
    network = build(checkpoint, torch.bfloat16, META)
    assert checkpoint.family == "matching"
    assert count(network.vision_model) == pytest.approx(0.986, abs=0.001)
    assert count(network) == pytest.approx(1.173, abs=0.002)
    test_known_configurations_say_what_the_classes_take_from_them(("", checkpoint, network))


def test_known_names_are_found_with_and_without_their_owner() -> None:
    checkpoint = find_random("Salesforce/blip2-opt-2.7b")
    assert (checkpoint.name, checkpoint.commit) == ("Salesforce/blip2-opt-2.7b", "random")
    assert (checkpoint.family, checkpoint.folder) == ("opt", KNOWN)
    assert find_random("blip2-opt-2.7b").config == checkpoint.config
    assert find_random("instructblip-vicuna-7b").family == "instructblip"
    tiny = find_random("tiny")
    assert (tiny.name, tiny.commit, tiny.folder) == ("tiny", "random", TINY)


def test_unknown_names_and_folders_without_configuration_are_refused(tmp_path: Path) -> None:
    for name in ("Salesforce/blip2-opt-66b", "blip2-itm-vit-l", "./nowhere"):
        with pytest.raises(ModelError, match=r"one of blip2-flan-t5-xl, .*instructblip-vicuna-7b.*model tiny"):
            find_random(name)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        find_random(tmp_path)
    with pytest.raises(UsageError, match="revision main"):
        find(ModelOptions(name="blip2-opt-2.7b", revision="main", random_weights=True))


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.long), torch.bfloat16, torch.float16])
def test_a_built_network_is_like_a_loaded_one(real: Path, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    instruct = checkpoint.family == "instructblip"
    network_class: Any = InstructBlipForConditionalGeneration if instruct else Blip2ForConditionalGeneration
    loaded, built = network_class.from_pretrained(real, dtype=dtype), build(checkpoint, dtype, CPU)

    def shapes(network: Any) -> dict[str, Any]:
        parameters = network.named_parameters(remove_duplicate=False)
        return {name: (tuple(value.shape), value.dtype, value.requires_grad) for name, value in parameters}

    assert shapes(built) == shapes(loaded)
    buffers, expected = dict(built.named_buffers()), dict(loaded.named_buffers())
    assert buffers.keys() == expected.keys()
    for name in buffers:
        torch.testing.assert_close(buffers[name], expected[name])
    assert not built.training
    assert {value.device for value in (*built.parameters(), *built.buffers())} == {CPU}
    never_ends = {"eos_token_id": None}
    loaded_config = loaded.language_model.generation_config.to_dict() | never_ends
    assert built.language_model.generation_config.to_dict() == loaded_config


def test_tied_weights_are_tied_but_not_the_head_of_flan_t5(checkpoint: Checkpoint) -> None:
    language_model = build(checkpoint, torch.float32, CPU).language_model
    is_tied = language_model.get_output_embeddings().weight is language_model.get_input_embeddings().weight
    assert is_tied == (checkpoint.text_type == "opt")
    if checkpoint.text_type == "t5":
        assert language_model.encoder.embed_tokens.weight is language_model.decoder.embed_tokens.weight


def test_weights_are_random_everywhere_and_the_same_every_time(checkpoint: Checkpoint) -> None:
    network = build(checkpoint, torch.float32, CPU)
    again = dict(build(checkpoint, torch.float32, CPU).named_parameters())
    first, second = (layer.self_attn.qkv.weight for layer in network.vision_model.encoder.layers)
    assert not torch.equal(first, second)
    assert first.std().item() == pytest.approx(0.02, rel=0.1)
    assert network.query_tokens.std().item() == pytest.approx(0.02, rel=0.3)
    for name, value in network.named_parameters():
        assert torch.equal(value, again[name])
        if name.endswith("bias"):
            assert not value.any()
        elif value.ndim == 1:
            assert (value == 1).all()
        else:
            assert value.unique().numel() > value.numel() / 2


def test_layers_larger_than_the_tape_differ_too() -> None:
    network = build(find_random("tiny"), torch.bfloat16, CPU)
    assert sum(value.numel() for value in network.parameters()) > 2_000_000
    stacked = torch.stack([layer.mlp.fc1.weight.flatten() for layer in network.vision_model.encoder.layers]).float()
    alike = torch.corrcoef(stacked) - torch.eye(len(stacked))
    assert alike.abs().max() < 0.05


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.long), torch.bfloat16])
def test_a_built_network_generates(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    network, tokenizer = build(checkpoint, dtype, CPU), stand_in_tokenizer(checkpoint.config)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    if checkpoint.family == "instructblip":
        qformer_tokenizer = stand_in_tokenizer(checkpoint.config, which="qformer")
        model: Blip2 = InstructBlip(network, tokenizer, qformer_tokenizer, checkpoint=checkpoint, mean=mean, std=std)
    else:
        model = Blip2(network, tokenizer, checkpoint=checkpoint, mean=mean, std=std)
    rng = np.random.default_rng(0)
    features = model.encode([rng.integers(0, 256, (28, 28, 3), dtype=np.uint8) for _ in range(2)])
    prompts = [Prompt(image=at, text=text, name="") for at in range(2) for text in ("", "Question: why? Answer:")]
    results = model.generate(features, prompts, GenerateOptions(max_new_tokens=5))
    assert len(results) == 4
    for result in results:
        assert isinstance(result, list)
        assert result[0].num_tokens <= 5
        assert all(word.startswith("t") for word in result[0].text.split())


@pytest.mark.parametrize(
    ("name", "empty_text"), [("blip2-opt-2.7b", [2]), ("blip2-flan-t5-xl", [1]), ("instructblip-vicuna-7b", [0])]
)
def test_the_stand_in_tokenizer_begins_and_ends_texts_as_the_real_one(name: str, empty_text: list[int]) -> None:
    config = find_random(name).config
    text = config["text_config"]
    tokenizer = stand_in_tokenizer(config)
    assert len(tokenizer) == text["vocab_size"]
    assert tokenizer("").input_ids == empty_text
    assert tokenizer.pad_token_id == text["pad_token_id"]
    assert tokenizer.eos_token_id == text["eos_token_id"]
    assert tokenizer.bos_token_id == text["bos_token_id"]
    assert tokenizer.convert_tokens_to_ids("<image>") == config["image_token_index"]
    assert tokenizer.padding_side == ("right" if text["model_type"] == "t5" else "left")
    question = tokenizer("Question: what is it? Answer:").input_ids
    assert len(question) == 9
    assert question == tokenizer("Question: what is it? Answer:").input_ids


def test_every_id_reads_as_a_word_and_back() -> None:
    config = find_random("blip2-opt-2.7b").config
    tokenizer = stand_in_tokenizer(config)
    ids = [index for index in range(len(tokenizer)) if index not in (1, 2, 50118, 50265)]
    words = tokenizer.decode(ids, skip_special_tokens=True).split()
    assert words == [f"t{index}" for index in ids]
    assert tokenizer(" ".join(words[:1000])).input_ids == [2, *ids[:1000]]
    assert tokenizer.decode([1, 2, 50118, 50265], skip_special_tokens=True).strip() == ""


def test_the_q_formers_tokenizer_begins_and_ends_as_berts() -> None:
    tokenizer = stand_in_tokenizer(find_random("instructblip-flan-t5-xl").config, which="qformer")
    assert len(tokenizer) == 30523
    begin, *_, end = tokenizer("what is it?").input_ids
    assert (begin, end, tokenizer.pad_token_id) == (101, 102, 0)


def test_old_snapshots_without_an_image_token_have_none(tmp_path: Path) -> None:
    config = json.loads((KNOWN / "instructblip-vicuna-7b.json").read_text())
    del config["image_token_index"]
    config["text_config"] |= {"pad_token_id": -1, "vocab_size": 32001}
    tokenizer = stand_in_tokenizer(config)
    assert len(tokenizer) == 32001
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    assert "<image>" not in tokenizer.get_vocab()
