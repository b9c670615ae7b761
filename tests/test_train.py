"""Training: data that is a function of the step, a loop that learns and resumes, and honest scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Blip2ForConditionalGeneration

from blip2cap.models.registry import FAMILIES
from blip2cap.records import Generated, Prompt
from blip2cap.tiny.scenes import PLACES, TRAINING_SEEDS, Question, Scene, draw
from blip2cap.train.loop import LoopOptions, learning_rate_at, train
from blip2cap.train.tiny import IMAGE_SIZE, PATCH_SIZE
from blip2cap.train.tiny_accuracy import differing_words, measure, score
from blip2cap.train.tiny_data import IGNORED, DataOptions, SceneBatches, patch_hints
from blip2cap.train.tiny_recipe import TinyOptions, TinyRecipe
from blip2cap.train.tokenizer import train_tokenizer

SMALL = LoopOptions(
    num_steps=3, polish_steps=1, warmup_steps=2, num_workers=0, checkpoint_every=2, evaluate_every=1_000
)


def recipe() -> TinyRecipe:
    return TinyRecipe(TinyOptions(data=DataOptions(batch_size=4)))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


def test_a_batch_is_a_function_of_its_step(tokenizer) -> None:
    one, other = (SceneBatches(tokenizer, DataOptions(batch_size=3)) for _ in range(2))
    for first, second in zip(one[5], other[5], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(one[5].pixels_BCHW, one[6].pixels_BCHW)


@pytest.mark.long
def test_prompts_do_not_depend_on_what_is_in_the_picture(tokenizer) -> None:
    data = SceneBatches(tokenizer, DataOptions(batch_size=400, questions_per_image=0))
    seeds = TRAINING_SEEDS[:400]
    photo = tokenizer("a photo of").input_ids
    places = Counter(
        draw(seed, (16, 16)).place
        for seed, ids in zip(seeds, data[0].ids_BKT[:, 0].tolist(), strict=True)
        if ids[: len(photo)] == photo
    )
    assert set(places) == set(PLACES)
    assert max(places.values()) < 0.4 * places.total()


def test_more_questions_are_asked_later_on(tokenizer) -> None:
    options = DataOptions(batch_size=2, questions_per_image=1, more_questions_from=3, more_questions=4)
    texts_per_image = [SceneBatches(tokenizer, options)[step].ids_BKT.shape[1] for step in (2, 3)]
    assert texts_per_image == [1 + 1, 1 + 4]


def test_labels_are_the_text_after_the_prompt_and_the_end(tokenizer) -> None:
    batch = SceneBatches(tokenizer, DataOptions(batch_size=8, strange_share=0.0))[0]
    for ids_KT, labels_KT in zip(batch.ids_BKT, batch.labels_BKT, strict=True):
        for ids, labels in zip(ids_KT.tolist(), labels_KT.tolist(), strict=True):
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


def test_the_learning_rate_warms_up_and_goes_down_to_zero() -> None:
    options = LoopOptions(num_steps=100, warmup_steps=10, polish_steps=20)
    rates = [learning_rate_at(step, options) for step in range(100)]
    assert rates[0] < rates[9] == options.learning_rate
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < options.learning_rate * 0.01
    polish = [learning_rate_at(step, options) for step in range(100, 120)]
    assert polish[0] == options.polish_rate
    assert polish == sorted(polish, reverse=True)


@pytest.mark.long
def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", recipe(), SMALL)

    class CutError(Exception):
        pass

    def cut_after(step: int, options: LoopOptions) -> float:
        if step == 3:
            raise CutError
        return learning_rate_at(step, options)

    monkeypatch.setattr("blip2cap.train.loop.learning_rate_at", cut_after)
    with pytest.raises(CutError):
        train(tmp_path / "cut", recipe(), SMALL)
    monkeypatch.undo()
    resumed = train(tmp_path / "cut", recipe(), SMALL)
    expected = load_file(whole / "model.safetensors")
    for name, tensor in load_file(resumed / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.long
def test_training_moves_every_part_and_saves_what_transformers_loads(tmp_path: Path) -> None:
    untrained = train(tmp_path / "untrained", recipe(), replace(SMALL, learning_rate=0.0))
    trained = train(tmp_path / "trained", recipe(), SMALL)
    before, after = (load_file(folder / "model.safetensors") for folder in (untrained, trained))
    for part in ("vision_model", "query_tokens", "qformer", "language_projection", "language_model"):
        moved = [not torch.equal(before[name], after[name]) for name in after if name.startswith(part)]
        assert any(moved), part
    Blip2ForConditionalGeneration.from_pretrained(trained)
    AutoTokenizer.from_pretrained(trained)


class Oracle:
    """Knows one answer to every prompt."""

    image_size = 32
    checkpoint = SimpleNamespace(family="opt")

    def __init__(self, caption: str, answer: str) -> None:
        self.caption, self.answer = caption, answer

    def encode(self, images: list[np.ndarray]) -> int:
        assert all(image.shape == (32, 32, 3) for image in images)
        return len(images)

    def generate(self, features: int, prompts: list[Prompt], options: object, *, capacity: int) -> object:
        texts = [self.answer if prompt.text else self.caption for prompt in prompts]
        return [[Generated(text=text, finish_reason="stop", num_tokens=1)] for text in texts]


def test_always_yes_scores_half_of_the_is_there_questions_and_is_found_out() -> None:
    accuracy = measure(Oracle("a red car on the beach", "yes"), num_scenes=60, num_questions=180)  # type: ignore[arg-type]
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
    accuracy = score(captions, captions[:1], questions)
    assert accuracy.captions_exact == pytest.approx(1 / 3, abs=1e-4)
    assert accuracy.prompted_captions_exact == 1.0
    assert accuracy.wrong_captions_by_words == {1: 1, 4: 1}
    assert accuracy.answers_exact == accuracy.by_answer["two"] == 0.5
    assert differing_words("a b c", "a c") == 1


def test_questions_are_put_the_way_opt_is_asked() -> None:
    scene: Scene = draw(0, (16, 16))
    assert FAMILIES["opt"].vqa_template.replace("{question}", scene.questions[0].text).startswith("Question: what")
