"""Models in training: what trains, what is minimised, and what is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration

from blip2cap.models.blip2.load import load
from blip2cap.models.checkpoint import find
from blip2cap.options import GenerateOptions, ModelOptions
from blip2cap.records import Prompt
from blip2cap.train.model.trainee import Trainee
from blip2cap.train.options.model import OptimOptions, TuneOptions
from tests.checkpoints import KINDS
from tests.training import noise_images, read_base, text_batch

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


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_class(checkpoints: Callable[[str], Path], kind: str) -> None:
    trainee = make_trainee(checkpoints(kind)).eval()
    batch = text_batch(trainee.base)
    torch.testing.assert_close(trainee(**batch)["loss"], trainee.model(**batch).loss)


@pytest.mark.parametrize("kind", KINDS)
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
