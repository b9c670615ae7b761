"""Models in training: what trains, what is minimised, and what is saved."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration

from blip2cap.errors import ModelError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.load import load
from blip2cap.models.checkpoint import find
from blip2cap.options import ModelOptions
from blip2cap.records import Prompt
from blip2cap.train.model.trainee import Trainee
from blip2cap.train.options.model import OptimOptions, TuneOptions
from tests.checkpoints import KINDS
from tests.training import noise_images, pair_batch, read_base, text_batch, untie

GREEDY = GenerateOptions(max_new_tokens=6)


def make_trainee(folder: Path, *train: str, stage: str = "caption", **settings: Any) -> Trainee:
    tune = TuneOptions(train=train or ("qformer",), **settings)
    return Trainee(read_base(folder, stage, tune), stage=stage, tune=tune, seed=1)


def learn(trainee: Trainee, num_steps: int, rate: float = 1e-2) -> None:
    """Take steps on one batch."""
    trainee.train()
    options = OptimOptions(learning_rate=rate)
    optimiser = torch.optim.AdamW(trainee.groups(options), betas=(0.9, options.beta2))
    for _ in range(num_steps):
        trainee(**text_batch(trainee.base))["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
    trainee.eval()


def texts(model: Any) -> list[str]:
    features = model.encode([image.numpy() for image in noise_images(3, size=model.image_size)])
    prompts = [Prompt(image=number, text="w1 w2", name="") for number in range(3)]
    return [result[0].text for result in model.generate(features, prompts, GREEDY)]


def load_plain(folder: Path) -> Any:
    instruct = (folder / "qformer_tokenizer").exists()
    return (InstructBlipForConditionalGeneration if instruct else Blip2ForConditionalGeneration).from_pretrained(folder)


ONE_AND_MORE = [kind if kind == "opt" else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS]
"""Kinds for tests that take seconds each."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_class(checkpoints: Callable[[str], Path], kind: str) -> None:
    trainee = make_trainee(checkpoints(kind)).eval()
    batch = text_batch(trainee.base)
    torch.testing.assert_close(trainee(**batch)["loss"], trainee.model(**batch).loss)


@pytest.mark.parametrize("kind", ONE_AND_MORE)
@pytest.mark.parametrize("train", [("all",), ("qformer", "lora")], ids="+".join)
def test_a_finished_model_is_loaded_by_blip2cap_and_by_transformers(
    checkpoints: Callable[[str], Path], tmp_path: Path, kind: str, train: tuple[str, ...]
) -> None:
    trainee = make_trainee(checkpoints(kind), *train)
    before = texts(trainee.eval().captioner())
    learn(trainee, 8)
    trainee.save(tmp_path / "run")

    batch = text_batch(trainee.base)
    plain = load_plain(tmp_path / "run").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, trainee.model(**batch).logits, rtol=1e-5, atol=1e-4)
    options = ModelOptions(name=str(tmp_path / "run"), device="cpu", dtype="float32")
    written = texts(load(find(options), options))
    assert written == texts(trainee.captioner()) != before


@pytest.mark.parametrize(
    "train", [pytest.param("qformer", marks=pytest.mark.long), "lora", pytest.param("llm", marks=pytest.mark.long)]
)
def test_the_head_of_flan_t5_stays_apart(checkpoints: Callable[[str], Path], tmp_path: Path, train: str) -> None:
    trainee = make_trainee(untie(checkpoints("t5"), tmp_path / "base"), train)
    learn(trainee, 3)
    trainee.save(tmp_path / "run")
    batch, live = text_batch(trainee.base), trainee.model.language_model
    for again in (load_plain(tmp_path / "run").eval(), read_base(tmp_path / "run").model):
        assert torch.equal(again.language_model.lm_head.weight, live.lm_head.weight)
        for stack in (again.language_model, again.language_model.encoder, again.language_model.decoder):
            assert torch.equal(stack.get_input_embeddings().weight, live.shared.weight)
        assert not torch.equal(live.lm_head.weight, live.shared.weight)
        with torch.no_grad():
            torch.testing.assert_close(again(**batch).logits, trainee.model(**batch).logits, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("train", ["qformer", "vision", "llm", "lora", "all"])
def test_every_part_learns_alone(checkpoints: Callable[[str], Path], train: str) -> None:
    trainee = make_trainee(checkpoints("opt"), train)
    frozen = {name: value.clone() for name, value in trainee.state_dict().items() if name not in trainee.trainable()}
    batch = text_batch(trainee.base)
    before = trainee.eval()(**batch)["loss"].item()
    learn(trainee, 10, rate=2e-3)
    assert trainee(**batch)["loss"].item() < before - 0.1
    tied = {name for name in frozen if name.endswith("lm_head.weight")}
    now = trainee.state_dict()
    assert [name for name in frozen if name not in tied and not torch.equal(frozen[name], now[name])] == []


def gradients(trainee: Trainee, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)  # dropout
    trainee.train().zero_grad()
    trainee(**batch)["loss"].backward()
    return {name: each.grad.clone() for name, each in trainee.trainable().items() if each.grad is not None}


@pytest.mark.parametrize("kind", [*ONE_AND_MORE, "matching"])
def test_gradient_checkpointing_changes_no_gradient(checkpoints: Callable[[str], Path], kind: str) -> None:
    stage = "stage1" if kind == "matching" else "caption"
    expected, found = (
        make_trainee(checkpoints(kind), "all", stage=stage, gradient_checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    batch = (pair_batch if stage == "stage1" else text_batch)(expected.base)
    count = 0

    def counted(*given: Any) -> None:
        nonlocal count
        count += 1

    found.model.vision_model.encoder.layers[0].self_attn.register_forward_hook(counted)
    of_all = gradients(expected, batch)
    assert of_all.keys() == expected.trainable().keys()
    for name, gradient in gradients(found, batch).items():
        torch.testing.assert_close(gradient, of_all[name], msg=name)
    assert count == 2, "the layer runs again in the backward pass"


@pytest.mark.parametrize("kind", [*KINDS, "matching"])
def test_losses_in_mixed_precision_are_near_those_in_full(checkpoints: Callable[[str], Path], kind: str) -> None:
    stage = "stage1" if kind == "matching" else "caption"
    trainee = make_trainee(checkpoints(kind), stage=stage).eval()
    batch = (pair_batch if stage == "stage1" else text_batch)(trainee.base)
    torch.manual_seed(0)
    full = trainee(**batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = trainee(**batch)
    for name, loss in full.items():
        assert mixed[name].dtype == torch.float32
        assert mixed[name].item() == pytest.approx(loss.item(), rel=0.3), name


@pytest.mark.parametrize("train", [("qformer",), ("qformer", "lora"), ("vision",)], ids="+".join)
@pytest.mark.parametrize("kind", [*ONE_AND_MORE, "matching"])
def test_rounding_frozen_weights_changes_no_loss_and_no_gradient_in_mixed_precision(
    checkpoints: Callable[[str], Path], kind: str, train: tuple[str, ...]
) -> None:
    stage = "stage1" if kind == "matching" else "caption"
    if stage == "stage1" and "lora" in train:
        pytest.skip("stage 1 has no language model")
    plain, rounded = (make_trainee(checkpoints(kind), *train, stage=stage) for _ in range(2))
    rounded.round_frozen(torch.bfloat16, lambda: read_base(checkpoints(kind), stage).model)
    batch = (pair_batch if stage == "stage1" else text_batch)(plain.base)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = gradients(plain, dict(batch)), gradients(rounded, dict(batch))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    halved = {name for name, value in rounded.named_parameters() if value.dtype == torch.bfloat16}
    assert not halved & rounded.trainable().keys()
    large = {
        f"{name}.weight"
        for name, module in rounded.named_modules()
        if isinstance(module, torch.nn.Linear) and re.search(r"vision_model.*\.layers\.|\.(layers|block)\.", name)
    }
    assert large - rounded.trainable().keys() <= halved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ONE_AND_MORE)
def test_a_finished_model_has_the_values_of_its_base_where_frozen_weights_were_rounded(
    checkpoints: Callable[[str], Path], tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    folder = checkpoints(kind)
    trainee, plain = (make_trainee(folder, "lora") for _ in range(2))
    trainee.round_frozen(dtype, lambda: read_base(folder).model)
    with torch.autocast("cpu", dtype=dtype):
        learn(trainee, 2)
    live = {name: value.clone() for name, value in trainee.state_dict().items()}
    with trainee.in_one_dtype():
        assert len(texts(trainee.captioner())) == 3
    assert [name for name, value in trainee.state_dict().items() if not torch.equal(value, live[name])] == []
    assert {value.dtype for value in trainee.trainable().values()} == {torch.float32}
    trainee.save(tmp_path)
    assert '"dtype": "float32"' in (tmp_path / "config.json").read_text()
    plain.load_state_dict({**plain.state_dict(), **trainee.trainable()})
    plain.save(tmp_path / "expected")
    found, expected = read_base(tmp_path).model.state_dict(), read_base(tmp_path / "expected").model.state_dict()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_a_base_that_changed_while_it_was_trained_is_refused(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    trainee, other = make_trainee(checkpoints("opt")), read_base(checkpoints("opt")).model
    other.vision_model.encoder.layers[0].mlp.fc1.weight.data.mul_(2)
    trainee.round_frozen(torch.bfloat16, lambda: other)
    with pytest.raises(ModelError, match=r"has changed since the training began, in vision_model.encoder.layers.0.mlp"):
        trainee.save(tmp_path)


def test_adapters_begin_as_nothing_and_are_merged_exactly(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    plain, trainee = make_trainee(checkpoints("opt")).eval(), make_trainee(checkpoints("opt"), "lora").eval()
    batch = text_batch(trainee.base)
    assert torch.equal(plain(**batch)["loss"], trainee(**batch)["loss"])
    learn(trainee, 4)
    live = {name: value.clone() for name, value in trainee.state_dict().items()}
    trainee.save(tmp_path)
    assert all(torch.equal(value, live[name]) for name, value in trainee.state_dict().items()), "the live weights stay"
    merged, before = read_base(tmp_path).model.state_dict(), plain.model.state_dict()
    changed = {name for name, value in merged.items() if not torch.equal(value, before[name])}
    layers = "language_model.model.decoder.layers"
    assert changed == {f"{layers}.{n}.self_attn.{name}.weight" for n in range(2) for name in ("q_proj", "v_proj")}


def test_equal_seeds_give_equal_adapters(checkpoints: Callable[[str], Path]) -> None:
    tune = TuneOptions(train=("lora",))
    first, again, other = (
        Trainee(read_base(checkpoints("opt"), tune=tune), stage="caption", tune=tune, seed=seed).trainable()
        for seed in (1, 1, 2)
    )
    down = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in down)


def test_adapters_need_peft(checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"train lora: peft is not installed. Run: pip install 'blip2cap\[train\]'"):
        make_trainee(checkpoints("opt"), "lora")


@pytest.mark.parametrize("kind", ONE_AND_MORE)
def test_adapters_alone_are_loaded_by_blip2cap_and_by_transformers(
    checkpoints: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    trainee = make_trainee(checkpoints(kind), "lora", no_merge=True)
    before = text_batch(trainee.base)
    learn(trainee, 6)
    trainee.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {"README.md"} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    with torch.no_grad():
        expected = trainee.model(**before).logits
        classes = {True: InstructBlipForConditionalGeneration, False: Blip2ForConditionalGeneration}
        plain = classes[kind.startswith("instructblip")].from_pretrained(tmp_path).eval()
        torch.testing.assert_close(plain(**before).logits, expected, rtol=1e-5, atol=1e-4)
        again = read_base(tmp_path)
        torch.testing.assert_close(again.model(**before).logits, expected, rtol=1e-5, atol=1e-4)
        assert not torch.allclose(read_base(checkpoints(kind)).model(**before).logits, expected, atol=1e-2)
    options = ModelOptions(name=str(tmp_path), device="cpu", dtype="float32")
    checkpoint = find(options)
    assert checkpoint.name == str(tmp_path)
    assert checkpoint.commit.startswith(f"{find(ModelOptions(name=str(checkpoints(kind)))).commit} + sha256:")
    assert texts(load(checkpoint, options)) == texts(trainee.captioner())
