"""Training of the matching model: true and false texts, masks, losses that fall, a run that resumes, recall."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Blip2ForImageTextRetrieval, Blip2Processor

from blip2cap.tiny.scenes import LIGHTS, PLACES, Scene, draw
from blip2cap.train.drawn import Lines
from blip2cap.train.prepare import Prepared, TrainJob
from blip2cap.train.run import train
from blip2cap.train.statements import CHANGES, Group, Statement, changed, full, shorter
from blip2cap.train.tiny_itm_accuracy import RERANKED, Scores, distinct_captions, measure_matches, reranked_scores
from blip2cap.train.tiny_itm_data import PairCollator, PairOptions, ScenePairs
from blip2cap.train.tiny_itm_recipe import TinyItmTrainee, job, new_base, prepare_tiny_itm
from blip2cap.train.wordpiece import new_tokenizer

PAIRS = PairOptions(num_scenes=8)


def batches(cache: Path, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    """Return the two batches of four pairs of an epoch."""
    base = new_base(1)
    collate, data = PairCollator(base.tokenizer, base.model.vision_model.eval(), cache, PAIRS), ScenePairs(PAIRS)
    data.set_epoch(epoch)
    return [collate([data[position] for position in range(start, start + 4)]) for start in (0, 4)]


def scenes(num_scenes: int = 200) -> list[Scene]:
    return [draw(seed, (16, 16)) for seed in range(num_scenes)]


def test_the_full_statement_is_the_caption() -> None:
    for scene in scenes():
        assert full(scene).text == scene.caption
        assert full(scene).is_true_of(scene)


def test_shorter_texts_are_true_and_leave_something_out() -> None:
    rng = random.Random(0)
    for scene in scenes():
        text = shorter(rng, scene)
        assert text.text
        assert text.is_true_of(scene)
        assert len(text.text.split()) <= len(scene.caption.split())


def test_changed_captions_are_false_by_one_word_or_phrase() -> None:
    rng = random.Random(0)
    seen = set()
    for scene in scenes():
        for change in CHANGES:
            found = changed(rng, full(scene), scene, (change,))
            if found is None:
                assert change == "light", "every caption names a thing and a place"
                continue
            wrong, kind = found
            seen.add(kind)
            assert kind == change
            assert not wrong.is_true_of(scene)
            before, after = full(scene), wrong
            facts = [*zip(before.groups, after.groups, strict=True), (before.place, after.place)]
            assert sum(old != new for old, new in [*facts, (before.light, after.light)]) == 1
            assert after.light in LIGHTS.values()
            assert after.place in PLACES
    assert seen == set(CHANGES)


def test_a_text_is_true_of_every_scene_that_has_what_it_names() -> None:
    scene = next(
        scene for scene in scenes() if scene.caption == "a brown house next to a red boat on the sea under the sun"
    )
    house, boat = Group("house", "brown", 1), Group("boat", "", 1)
    for statement, is_true in {
        Statement((boat,), "sea", ""): True,
        Statement((boat, house), "", "under the sun"): True,
        Statement((), "sea", ""): True,
        Statement((replace(boat, colour="brown"),), "sea", ""): False,
        Statement((replace(boat, count=2),), "", ""): False,
        Statement((boat,), "beach", ""): False,
        Statement((boat,), "", "at night"): False,
    }.items():
        assert statement.is_true_of(scene) == is_true, statement.text


def test_every_word_of_a_caption_is_one_token_after_cls() -> None:
    tokenizer = new_tokenizer()
    for scene in scenes(50):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(scene.caption).input_ids)
        assert tokens == ["[CLS]", *scene.caption.split(), "[SEP]"]
    strange = tokenizer("What's THAT, a xylophone-9?").input_ids
    assert tokenizer.unk_token_id not in strange


@pytest.mark.long
def test_a_batch_is_a_function_of_its_epoch_also_from_stored_features(tmp_path: Path) -> None:
    first, other, stored = (batches(tmp_path / name) for name in ("one", "two", "one"))
    for a, b, c in zip(first, other, stored, strict=True):
        assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a)
        assert a["true_BB"].diagonal().all()
    assert not torch.equal(first[0]["image_BPD"], batches(tmp_path / "one", epoch=1)[0]["image_BPD"])


@pytest.mark.long
def test_steps_lower_every_loss_of_a_fixed_batch(tmp_path: Path) -> None:
    trainee, batch = TinyItmTrainee(new_base(1), seed=1), batches(tmp_path / "features")[0]
    optimiser = torch.optim.AdamW(trainee.trainable().values(), lr=1e-3)
    history = []
    for _ in range(25):
        torch.manual_seed(0)
        losses = trainee(**batch)
        history.append({name: loss.item() for name, loss in losses.items()})
        losses["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
    for name in ("loss_itc", "loss_itm", "loss_lm"):
        assert history[-1][name] < 0.95 * history[0][name], (name, history[0], history[-1])


def small(folder: Path) -> TrainJob:
    made = job(folder)
    loop = replace(made.loop, max_steps=4, batch_size=4, log_every=1, checkpoint_every=2, num_workers=0)
    return replace(made, optim=replace(made.optim, warmup_steps=2), loop=loop)


def make(*arguments: Any, **settings: Any) -> Prepared:
    return prepare_tiny_itm(*arguments, **settings, data=PAIRS)


def run(made: TrainJob, stopped: Callable[[], bool] = lambda: False) -> Path:
    train(made, listener=Lines(), stopped=stopped, make=make)
    return made.out


@pytest.mark.long
def test_a_stopped_training_ends_with_the_same_weights_and_leaves_the_vision_encoder(tmp_path: Path) -> None:
    whole = load_file(run(small(tmp_path / "whole")) / "model.safetensors")
    stops = iter([False, False, True])
    cut = small(tmp_path / "cut")
    run(cut, lambda: next(stops))
    assert not (cut.out / "config.json").exists()
    given = load_file(run(cut) / "model.safetensors")
    assert all(torch.equal(given[name], whole[name]) for name in whole)
    start = new_base(1).model.to(torch.bfloat16).state_dict()
    for part in ("query_tokens", "embeddings", "qformer", "vision_projection", "text_projection", "itm_head"):
        assert any(not torch.equal(given[name], start[name]) for name in given if name.startswith(part)), part
    assert all(torch.equal(given[name], start[name]) for name in given if name.startswith("vision_model"))
    Blip2ForImageTextRetrieval.from_pretrained(cut.out)
    Blip2Processor.from_pretrained(cut.out)
    assert AutoTokenizer.from_pretrained(cut.out)("a boat").input_ids[0] == 2


def test_scores_are_those_of_the_forward_of_transformers(tmp_path: Path) -> None:
    TinyItmTrainee(new_base(1), seed=1).save(tmp_path / "model")
    model = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    processor = Blip2Processor.from_pretrained(tmp_path / "model")
    images = [draw(seed, (112, 112)).image for seed in range(3)]
    texts = ["a boat on the sea", "two red cars", "in the snow under the moon"]
    scores = Scores(model, processor.tokenizer)
    image_BPD, queries_BQD = scores.images([np.asarray(image) for image in images])
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        itc = model(**inputs).logits_per_image
        itm = model(**inputs, use_image_text_matching_head=True).logits_per_image
    torch.testing.assert_close(scores.cosines(queries_BQD, texts), itc, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.itm(image_BPD, texts), itm[:, 1] - itm[:, 0], atol=1e-4, rtol=0)


class TrueScores:
    """Finds every image's own text among 100, and takes every pair for a match."""

    def __init__(self, model: Blip2ForImageTextRetrieval) -> None:
        self.model = model

    def images(self, pixels: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(pixels), 1, 1), torch.zeros(len(pixels), 1, 1)

    def cosines(self, queries_BQD: torch.Tensor, texts: list[str]) -> torch.Tensor:
        return torch.eye(len(queries_BQD)).roll(1, dims=0) + 0.5 * torch.eye(len(queries_BQD))

    def itm(self, image_NPD: torch.Tensor, texts: list[str]) -> torch.Tensor:
        return torch.ones(len(texts))


@pytest.mark.long
def test_always_yes_has_half_of_the_accuracy_and_second_best_is_no_recall() -> None:
    accuracy = measure_matches(TrueScores(new_base(1).model), num_sets=1)  # type: ignore[arg-type]
    assert accuracy.itc_text_recall == accuracy.itc_image_recall == accuracy.reranked_text_recall == 0.0
    assert accuracy.true_accuracy == 1.0
    assert accuracy.changed_accuracy == 0.0
    assert accuracy.balanced_accuracy == 0.5
    assert accuracy.num_true == 100
    assert accuracy.num_changed > 400


def test_reranking_orders_the_best_results_by_itm_and_drops_the_others() -> None:
    class Reversed:
        def itm(self, image_NPD: torch.Tensor, texts: list[str]) -> torch.Tensor:
            return torch.tensor([-10.0 * int(text) for text in texts])

    itc_BB = torch.arange(30.0).repeat(2, 1) / 30
    scores = reranked_scores(Reversed(), itc_BB, torch.zeros(2, 1, 1), [str(i) for i in range(30)])  # type: ignore[arg-type]
    assert scores.argmax(dim=1).tolist() == [30 - RERANKED] * 2
    assert int(scores[0].isfinite().sum()) == RERANKED


def test_scenes_of_a_set_have_captions_of_their_own() -> None:
    chosen = distinct_captions(iter(range(1_000, 10_000)), 100)
    assert len({draw(seed, (16, 16)).caption for seed in chosen}) == len(chosen) == 100
