"""Training of the tiny captioner: drawn scenes, losses that fall, a run that resumes, and honest scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Blip2ForConditionalGeneration

from blip2cap.models.registry import FAMILIES
from blip2cap.records import Generated, Prompt
from blip2cap.tiny.scenes import PLACES, TRAINING_SEEDS, Question, Scene, draw
from blip2cap.train.drawn import Lines, found_of
from blip2cap.train.pixels import normalise
from blip2cap.train.plan import start_processes
from blip2cap.train.prepare import Prepared, TrainJob
from blip2cap.train.run import train
from blip2cap.train.tiny import IMAGE_SIZE, PATCH_SIZE
from blip2cap.train.tiny_accuracy import differing_words, measure, score
from blip2cap.train.tiny_data import IGNORED, DrawnCollator, DrawnOptions, DrawnScenes, patch_hints
from blip2cap.train.tiny_recipe import TinyTrainee, job, new_base, prepare_tiny
from blip2cap.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


def batch_of(tokenizer, options: DrawnOptions, epoch: int = 0) -> dict[str, torch.Tensor]:
    data = DrawnScenes(tokenizer, options)
    data.set_epoch(epoch)
    return DrawnCollator(tokenizer.pad_token_id)([data[position] for position in range(len(data))])


def test_a_scene_is_a_function_of_its_epoch_and_position(tokenizer) -> None:
    options = DrawnOptions(num_scenes=3)
    one, other, next_one = (batch_of(tokenizer, options, epoch) for epoch in (1, 1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["pixels"], next_one["pixels"])


@pytest.mark.long
def test_prompts_do_not_depend_on_what_is_in_the_picture(tokenizer) -> None:
    batch = batch_of(tokenizer, DrawnOptions(num_scenes=400, questions_per_image=0))  # captions alone
    photo = tokenizer("a photo of").input_ids
    places = Counter(
        draw(seed, (16, 16)).place
        for seed, ids in zip(TRAINING_SEEDS[:400], batch["input_ids"].tolist(), strict=True)
        if ids[: len(photo)] == photo
    )
    assert set(places) == set(PLACES)
    assert max(places.values()) < 0.4 * places.total()


def test_more_questions_are_asked_later_on(tokenizer) -> None:
    options = DrawnOptions(num_scenes=2, questions_per_image=1, more_questions_from=3, more_questions=4)
    assert [batch_of(tokenizer, options, epoch)["texts"].amax(1).tolist() for epoch in (2, 3)] == [[2, 2], [5, 5]]


def test_labels_are_the_text_after_the_prompt_and_the_end(tokenizer) -> None:
    batch = batch_of(tokenizer, DrawnOptions(num_scenes=8, strange_share=0.0))
    for ids_T, labels_T, texts_T in zip(batch["input_ids"], batch["targets"], batch["texts"], strict=True):
        for text in (1, 2):
            ids, labels = ids_T[texts_T == text].tolist(), labels_T[texts_T == text].tolist()
            said = [label for label in labels if label != IGNORED]
            start = labels.index(said[0])
            assert said[-1] == tokenizer.eos_token_id
            assert ids[start + 1 : start + len(said)] == said[:-1], "each label is the next token"
            prompt = tokenizer.decode(ids[: start + 1], skip_special_tokens=True)
            assert prompt in ("", "a photo of") or prompt.endswith("Answer:")


def test_a_caption_is_few_tokens_and_survives_the_tokenizer(tokenizer) -> None:
    for seed in range(50):
        text = f" {draw(seed, (16, 16)).caption}"
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert len(ids) <= len(text.split()) + 1
        assert tokenizer.decode(ids) == text
    strange = "Ünïcode 🎈\nand tabs\t"
    assert tokenizer.decode(tokenizer(strange, add_special_tokens=False).input_ids) == strange


def test_hints_lie_where_the_things_are() -> None:
    scene = draw(3, (IMAGE_SIZE, IMAGE_SIZE))
    side = IMAGE_SIZE // PATCH_SIZE
    kinds, colours, centres = patch_hints(scene).reshape(3, side, side)
    assert centres.sum() == len(scene.things)
    for thing in scene.things:
        row, column = int((thing.box[1] + thing.box[3]) / 2 * side), int((thing.box[0] + thing.box[2]) / 2 * side)
        assert kinds[row, column] > 0
        assert colours[row, column] > 0
        assert centres[row, column] == 1
    assert ((kinds > 0) == (colours > 0)).all()


def small(folder: Path, **loop: object) -> TrainJob:
    made = job(folder)
    settings = {"max_steps": 4, "batch_size": 4, "dtype": "float32", "log_every": 1, "evaluate_every": 2}
    settings |= {"checkpoint_every": 2, "num_workers": 0, **loop}
    return replace(made, optim=replace(made.optim, warmup_steps=2), loop=replace(made.loop, **settings))  # type: ignore[arg-type]


def make(*arguments: Any, **settings: Any) -> Prepared:
    return prepare_tiny(*arguments, **settings, data=DrawnOptions(num_scenes=8))


def run(made: TrainJob, stopped: Callable[[], bool] = lambda: False) -> Path:
    train(made, listener=Lines(), stopped=stopped, make=make)
    return made.out


def test_texts_of_an_image_do_not_see_each_other(tokenizer) -> None:
    """All in one sequence, they give the loss that the class of transformers has for each text alone."""
    trainee = TinyTrainee(new_base(1), seed=1)
    batch = batch_of(tokenizer, DrawnOptions(num_scenes=3, more_questions_from=0, more_questions=2))
    assert (batch["texts"] == 0).any(), "one of the rows is padded"
    expected = []
    for row, number in product(range(3), (1, 2, 3)):
        of_text = batch["texts"][row] == number
        ids, targets = batch["input_ids"][row, of_text], batch["targets"][row, of_text]
        queries = torch.full((trainee.model.config.num_query_tokens,), trainee.model.config.image_token_index)
        with torch.no_grad():
            logits = trainee.model(
                pixel_values=normalise(batch["pixels"][row : row + 1]), input_ids=torch.cat([queries, ids])[None]
            ).logits[0, len(queries) :]
        losses = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        expected += losses[targets != IGNORED].tolist()
    assert trainee(**batch)["loss_text"].item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.long
def test_a_training_on_drawn_scenes_is_prepared_as_one_on_files_is(tmp_path: Path) -> None:
    made, said = small(tmp_path / "run"), list[str]()
    arguments = start_processes(made.loop, made.out, dtype=torch.float32, clip_norm=made.optim.clip_norm)
    prepared = make(made, arguments, dtype=torch.float32, say=said.append)
    (line,) = said
    assert line.startswith("8 examples and 8 for validation; 4 steps of 4, 2 in an epoch; 3,103,765 of 3,103,765 ")
    assert prepared.recipe["found"] == found_of(DrawnOptions(num_scenes=8))
    assert prepared.recipe["found"]["num-scenes"] == 8
    assert prepared.base is prepared.trainee.base
    assert prepared.memory.optimiser == 8 * prepared.num_trainable


@pytest.mark.long
def test_a_stopped_training_ends_with_the_same_weights_and_moves_every_part(tmp_path: Path) -> None:
    whole = run(small(tmp_path / "whole"))
    stops = iter([False, False, True])
    run(small(tmp_path / "cut"), lambda: next(stops))
    assert not (tmp_path / "cut" / "config.json").exists()
    resumed = load_file(run(small(tmp_path / "cut")) / "model.safetensors")
    trained = load_file(whole / "model.safetensors")
    assert all(torch.equal(resumed[name], trained[name]) for name in trained)
    before = new_base(1).model.to(torch.bfloat16).state_dict()
    for part in ("vision_model", "query_tokens", "qformer", "language_projection", "language_model"):
        assert any(not torch.equal(before[name], trained[name]) for name in trained if name.startswith(part)), part
    assert all(tensor.dtype == torch.bfloat16 for tensor in trained.values())
    assert Blip2ForConditionalGeneration.from_pretrained(whole).dtype == torch.bfloat16
    AutoTokenizer.from_pretrained(whole)


@pytest.mark.long
def test_steps_lower_the_losses_of_texts_and_of_hints(tokenizer) -> None:
    trainee = TinyTrainee(new_base(1), seed=1)
    batch = batch_of(tokenizer, DrawnOptions(num_scenes=4))
    optimiser = torch.optim.AdamW(trainee.trainable().values(), lr=1e-3)
    history = []
    for _ in range(8):
        losses = trainee(**batch)
        history.append({name: loss.item() for name, loss in losses.items()})
        losses["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
    assert all(history[-1][name] < 0.9 * history[0][name] for name in ("loss_text", "loss_hints")), history


class Oracle:
    """Knows one answer to every prompt."""

    image_size = 32
    checkpoint = SimpleNamespace(family="opt")

    def __init__(self, caption: str, answer: str) -> None:
        self.caption, self.answer = caption, answer
        self.num_turns = Counter[int]()
        """Number of prompts, by the number of turns before them."""

    def encode(self, images: list[np.ndarray]) -> int:
        assert all(image.shape == (32, 32, 3) for image in images)
        return len(images)

    def generate(self, features: int, prompts: list[Prompt], options: object, *, capacity: int) -> object:
        self.num_turns.update(len(prompt.turns) for prompt in prompts)
        assert {turn.answer for prompt in prompts for turn in prompt.turns} <= {self.answer}
        texts = [self.answer if prompt.text else self.caption for prompt in prompts]
        return [[Generated(text=text, finish_reason="stop", num_tokens=1)] for text in texts]


def test_always_yes_scores_half_of_the_is_there_questions_and_is_found_out() -> None:
    oracle = Oracle("a red car on the beach", "yes")
    accuracy = measure(oracle, num_scenes=60, num_questions=180)  # type: ignore[arg-type]
    assert (oracle.num_turns[1], oracle.num_turns[2]) == (60, 60)
    assert 0 < accuracy.answers_in_conversations < 0.5
    assert accuracy.num_captions == 60
    assert accuracy.num_questions == 180
    assert accuracy.captions_exact < 0.1
    assert accuracy.by_answer["yes"] == 1.0
    assert accuracy.by_answer["no"] == 0.0
    assert accuracy.yes_share == 1.0
    assert 0.3 < accuracy.by_type["is_there"] < 0.7


def test_scores_count_exact_texts_and_how_far_the_others_are_off() -> None:
    questions = [
        (Question(type="count", text="", answer="two"), "two"),
        (Question(type="count", text="", answer="two"), "one"),
    ]
    captions = [("a red car", "a red car"), ("a red car", "a blue car"), ("a red car", "two red cars at night")]
    accuracy = score(captions, captions[:1], questions, questions[:1])
    assert accuracy.captions_exact == pytest.approx(1 / 3, abs=1e-4)
    assert accuracy.prompted_captions_exact == 1.0
    assert accuracy.wrong_captions_by_words == {1: 1, 4: 1}
    assert accuracy.answers_exact == accuracy.by_answer["two"] == 0.5
    assert accuracy.answers_in_conversations == 1.0
    assert differing_words("a b c", "a c") == 1


def test_questions_are_put_the_way_opt_is_asked() -> None:
    scene: Scene = draw(0, (16, 16))
    assert FAMILIES["opt"].vqa_template.replace("{question}", scene.questions[0].text).startswith("Question: what")
