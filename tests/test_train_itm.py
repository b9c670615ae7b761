"""Training of the matching model: true and false texts, masks, losses that fall, a run that resumes, recall."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Blip2ForImageTextRetrieval, Blip2Processor

from blip2cap.tiny.scenes import LIGHTS, PLACES, Scene, draw
from blip2cap.train.loop import LoopOptions, learning_rate_at, train
from blip2cap.train.stage1 import generation_mask
from blip2cap.train.statements import CHANGES, Group, Statement, changed, full, shorter
from blip2cap.train.tiny_itm_accuracy import RERANKED, Scores, distinct_captions, measure_matches, reranked_scores
from blip2cap.train.tiny_itm_data import PairOptions
from blip2cap.train.tiny_itm_recipe import TinyItmOptions, TinyItmRecipe
from blip2cap.train.wordpiece import new_tokenizer

SMALL = LoopOptions(
    num_steps=4, polish_steps=0, warmup_steps=2, num_workers=0, checkpoint_every=2, evaluate_every=1_000
)


def recipe(folder: Path) -> TinyItmRecipe:
    return TinyItmRecipe(TinyItmOptions(data=PairOptions(batch_size=4, num_scenes=8)), folder / "features.f16")


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


def test_a_batch_is_a_function_of_its_step_also_from_stored_features(tmp_path: Path) -> None:
    first, second = (list(recipe(tmp_path / name).batches(range(5), 0)) for name in ("one", "two"))
    stored = list(recipe(tmp_path / "one").batches(range(2, 5), 0))
    for a, b, c in zip(first[2:], second[2:], stored, strict=True):
        for tensors in zip(a, b, c, strict=True):
            assert torch.equal(tensors[0], tensors[1])
            assert torch.equal(tensors[0], tensors[2])
    assert all(batch.true_BB.diagonal().all() for batch in first)
    assert not torch.equal(first[0].ids_BT, first[2].ids_BT), "each epoch has its own order and texts"


def test_queries_do_not_see_the_text_that_is_generated_and_tokens_do_not_see_later_ones(tmp_path: Path) -> None:
    mask = generation_mask(recipe(tmp_path).model, torch.tensor([[1, 1, 1, 0]]))[0, 0] == 0
    num_queries = len(mask) - 4
    assert mask[:num_queries, :num_queries].all()
    assert not mask[:num_queries, num_queries:].any()
    assert mask[num_queries:, :num_queries].all()
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]], dtype=torch.bool)
    assert torch.equal(mask[num_queries:, num_queries:], expected)


def test_steps_lower_every_loss_of_a_fixed_batch(tmp_path: Path) -> None:
    trained = recipe(tmp_path)
    batch = next(iter(trained.batches(range(1), 0)))
    parameters = [p for module in trained.modules.values() for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    history = []
    for _ in range(25):
        losses = trained.losses(batch, 0)
        history.append({name: loss.item() for name, loss in losses.items()})
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        optimiser.step()
        optimiser.zero_grad()
    for name in trained.loss_weights:
        assert history[-1][name] < 0.95 * history[0][name], (name, history[0], history[-1])


def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", recipe(tmp_path / "whole"), SMALL)

    class CutError(Exception):
        pass

    def cut_after(step: int, options: LoopOptions) -> float:
        if step == 3:
            raise CutError
        return learning_rate_at(step, options)

    monkeypatch.setattr("blip2cap.train.loop.learning_rate_at", cut_after)
    with pytest.raises(CutError):
        train(tmp_path / "cut", recipe(tmp_path / "cut"), SMALL)
    monkeypatch.undo()
    resumed = train(tmp_path / "cut", recipe(tmp_path / "cut"), SMALL)
    expected, given = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in given.items())
    start = recipe(tmp_path / "start").model.to(torch.bfloat16).state_dict()
    for part in ("query_tokens", "embeddings", "qformer", "vision_projection", "text_projection", "itm_head"):
        assert any(not torch.equal(given[name], start[name]) for name in given if name.startswith(part)), part
    assert all(torch.equal(given[name], start[name]) for name in given if name.startswith("vision_model"))
    Blip2ForImageTextRetrieval.from_pretrained(resumed)
    Blip2Processor.from_pretrained(resumed)
    assert AutoTokenizer.from_pretrained(resumed)("a boat").input_ids[0] == 2


def test_scores_are_those_of_the_forward_of_transformers(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    made.save(tmp_path / "model")
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
def test_always_yes_has_half_of_the_accuracy_and_second_best_is_no_recall(tmp_path: Path) -> None:
    accuracy = measure_matches(TrueScores(recipe(tmp_path).model), num_sets=1)  # type: ignore[arg-type]
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
