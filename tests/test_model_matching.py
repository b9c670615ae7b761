"""Scores and vectors equal those of the transformers class, used as documented, one image and text at a time."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Blip2ForImageTextRetrieval, Blip2Processor

from blip2cap.decode.image import resize
from blip2cap.errors import ImageError, ModelError, UsageError
from blip2cap.models.blip2.int8_linear import cpu_can_int8
from blip2cap.models.checkpoint import find
from blip2cap.models.matching.load import load
from blip2cap.models.matching.model import WHAT, Matcher
from blip2cap.options import ModelOptions
from blip2cap.records import MatchScore, Prompt
from blip2cap.tasks.match import Match
from tests.checkpoints import IMAGE_SIZE, MATCHING_KINDS

TEXTS = ("a photo of w1", "w5", "what is it ? w8 w9 w10 w11 w12 w13", "w1 of photo a")
"""Of four lengths, two of which are padded to the same one."""
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-6}


@functools.cache
def load_model(folder: Path, **options: Any) -> Matcher:
    settings = ModelOptions(name=str(folder), **({"device": "cpu", "dtype": "float32"} | options))
    return load(find(settings), settings)


@pytest.fixture(scope="module", params=MATCHING_KINDS)
def folder(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints(request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> Matcher:
    return load_model(folder)


def draw(number: int) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)) for _ in range(number)]


IMAGES = draw(5)
PIXELS = [resize(image, IMAGE_SIZE).pixels_HWC for image in IMAGES]


@functools.cache
def reference(folder: Path) -> tuple[Any, Any]:
    return Blip2ForImageTextRetrieval.from_pretrained(folder).eval(), Blip2Processor.from_pretrained(folder)


@functools.cache
def expected(folder: Path) -> np.ndarray[Any, Any]:
    """Return what transformers computes: logits of the match head and the cosine, [images, texts, 3]."""
    network, processor = reference(folder)
    rows = []
    for image, text in itertools.product(IMAGES, TEXTS):
        given = processor(images=image, text=text, return_tensors="pt")
        with torch.no_grad():
            logits = network(**given, use_image_text_matching_head=True).logits_per_image[0]
            cosine = network(**given, use_image_text_matching_head=False).logits_per_image[0]
        rows.append([*logits.tolist(), *cosine.tolist()])
    return np.array(rows).reshape(len(IMAGES), len(TEXTS), 3)


def prompts(images: Sequence[int], texts: Sequence[str]) -> list[Prompt]:
    return [Prompt(image=image, text=text, name="") for image, text in itertools.product(images, texts)]


def results_of(session: Any, pixels: Sequence[Any], given: Sequence[Prompt]) -> list[Any]:
    tickets = session.add(session.encode(pixels), given)
    found: dict[int, Any] = {}
    while session.num_pending:
        found.update(session.advance())
    return [found[ticket] for ticket in tickets]


def scores_of(
    model: Matcher, pixels: Sequence[Any] = PIXELS, texts: Sequence[str] = TEXTS, *, capacity: int | None = None
) -> np.ndarray[Any, Any]:
    """Return the two scores of each pair, [images, texts, 2]."""
    found = results_of(model.start_match(capacity=capacity), pixels, prompts(range(len(pixels)), texts))
    return np.array([[score.itm, score.itc] for score in found]).reshape(len(pixels), len(texts), 2)


@pytest.mark.parametrize("capacity", [None, 1, 3])
def test_scores_equal_those_of_transformers(folder: Path, model: Matcher, capacity: int | None) -> None:
    logits, cosines = expected(folder)[..., :2], expected(folder)[..., 2]
    found = scores_of(model, capacity=capacity)
    np.testing.assert_allclose(found[..., 0], torch.tensor(logits).softmax(-1)[..., 1], **CLOSE)
    np.testing.assert_allclose(found[..., 1], cosines, **CLOSE)
    assert min(np.ptp(found[..., 0]), np.ptp(found[..., 1])) > 0.1, "else every model would pass"


def test_logits_of_the_match_head_equal_those_of_transformers(
    folder: Path, model: Matcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    logits_of = model._match_logits

    def recorded(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(logits_of(hidden))
        return seen[-1]

    monkeypatch.setattr(model, "_match_logits", recorded)
    scores_of(model, capacity=1)
    np.testing.assert_allclose(torch.cat(seen).reshape(5, 4, 2).numpy(), expected(folder)[..., :2], rtol=0, atol=1e-5)


def test_processors_with_padded_batches_give_the_same(folder: Path, model: Matcher) -> None:
    """A batch as the documentation of transformers has it, where shorter texts are padded."""
    network, processor = reference(folder)
    given = processor(images=IMAGES[: len(TEXTS)], text=list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        matched = network(**given, use_image_text_matching_head=True).logits_per_image.softmax(-1)[:, 1]
        contrasted = network(**given, use_image_text_matching_head=False).logits_per_image
    found = scores_of(model, PIXELS[: len(TEXTS)])
    np.testing.assert_allclose(found[..., 0].diagonal(), matched, **CLOSE)
    np.testing.assert_allclose(found[..., 1], contrasted, **CLOSE)


def test_scores_depend_neither_on_the_batch_nor_on_the_order(model: Matcher) -> None:
    together = scores_of(model)
    np.testing.assert_allclose(scores_of(model, PIXELS[::-1])[::-1], together, **CLOSE)
    np.testing.assert_allclose(scores_of(model, texts=TEXTS[::-1])[:, ::-1], together, **CLOSE)
    alone = np.stack([scores_of(model, [pixels])[0] for pixels in PIXELS])
    np.testing.assert_allclose(alone, together, **CLOSE)


def vectors_of(model: Any, what: str, *, normalised: bool, capacity: int | None = None) -> np.ndarray[Any, Any]:
    session = model.start_embed(what, normalised=normalised, capacity=capacity)
    found = results_of(session, PIXELS, prompts(range(len(PIXELS)), [""]))
    assert all(vector.dtype == np.float32 and vector.shape == model.embedding_shape(what) for vector in found)
    assert all(vector.base is None for vector in found), "a view would keep the vectors of its batch in memory"
    return np.stack(found)


def test_vectors_of_images_equal_those_of_transformers(folder: Path, model: Matcher) -> None:
    network, processor = reference(folder)
    given = processor(images=IMAGES, text=["a"] * len(IMAGES), return_tensors="pt")
    with torch.no_grad():
        queries = network(**given, use_image_text_matching_head=False).image_embeds.numpy()
        patches = network.vision_model(given["pixel_values"]).last_hidden_state
        hidden = network.qformer(network.query_tokens.expand(5, -1, -1), encoder_hidden_states=patches)[0]
        raw = network.vision_projection(hidden).numpy()
    np.testing.assert_allclose(vectors_of(model, "queries", normalised=True), queries, **CLOSE)
    np.testing.assert_allclose(vectors_of(model, "queries", normalised=False), raw, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(vectors_of(model, "qformer", normalised=False), hidden.numpy(), rtol=1e-5, atol=1e-5)
    length_one = hidden / hidden.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(vectors_of(model, "qformer", normalised=True), length_one.numpy(), **CLOSE)
    mean = queries.mean(axis=1)
    pooled = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(vectors_of(model, "pooled", normalised=True), pooled, **CLOSE)
    np.testing.assert_allclose(vectors_of(model, "pooled", normalised=False), raw.mean(axis=1), rtol=1e-5, atol=1e-5)


def test_texts_are_embedded_without_the_layers_of_the_vision_encoder(folder: Path, model: Matcher) -> None:
    small = load_model(folder, texts_only=True)
    assert len(small.network.vision_model.encoder.layers) == 0 < len(model.network.vision_model.encoder.layers)
    np.testing.assert_array_equal(small.embed_texts(TEXTS), model.embed_texts(TEXTS))


def test_vectors_of_texts_equal_those_of_transformers(folder: Path, model: Matcher) -> None:
    network, processor = reference(folder)
    found = []
    for text in TEXTS:
        given = processor(images=IMAGES[0], text=text, return_tensors="pt")
        with torch.no_grad():
            found.append(network(**given, use_image_text_matching_head=False).text_embeds[0].numpy())
    np.testing.assert_allclose(model.embed_texts(TEXTS), np.stack(found), **CLOSE)
    raw = model.embed_texts(TEXTS, normalised=False)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), np.stack(found), **CLOSE)
    assert model.embed_texts([]).shape == (0, 16)
    many = model.embed_texts(TEXTS * 40)
    assert many.dtype == np.float32
    np.testing.assert_allclose(many.reshape(40, 4, 16), np.broadcast_to(found, (40, 4, 16)), **CLOSE)


def test_the_product_of_vectors_is_the_contrastive_score(model: Matcher) -> None:
    queries, texts = vectors_of(model, "queries", normalised=True), model.embed_texts(TEXTS)
    products = np.einsum("bqe,te->btq", queries, texts).max(axis=-1)
    np.testing.assert_allclose(scores_of(model)[..., 1], products, **CLOSE)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """Record the number of rows of each call of a method."""
    calls: list[int] = []
    method = getattr(module, name)

    def call(first: Any, *more: Any, **settings: Any) -> Any:
        calls.append(len(first))
        return method(first, *more, **settings)

    monkeypatch.setattr(module, name, call)
    return calls


def test_an_image_goes_through_the_vision_encoder_once_and_a_text_is_tokenised_once(
    model: Matcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = counted(monkeypatch, model.network.vision_model, "forward")
    tokenised = counted(monkeypatch, model, "tokenise")
    embedded = counted(monkeypatch, model, "embed_ids")
    session = model.start_match(capacity=3)
    for pixels in PIXELS:
        results_of(session, [pixels], prompts([0], TEXTS))
    assert images == [1] * 5
    assert (len(tokenised), sum(embedded)) == (len(TEXTS), len(TEXTS))
    results_of(session, PIXELS, prompts(range(5), TEXTS))
    assert images == [1] * 5 + [5]


def test_texts_of_every_image_are_tokenised_once_however_many_they_are(
    model: Matcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blip2cap.models.matching.session._NUM_TEXTS", 2)
    tokenised = counted(monkeypatch, model, "tokenise")
    session = Match(texts=TEXTS).start(model, capacity=3)
    for pixels in PIXELS:
        results_of(session, [pixels], prompts([0], TEXTS))
    assert len(tokenised) == len(TEXTS)


@pytest.mark.parametrize("text", ["", " \n", " ".join(["w1"] * 63)])
def test_a_text_that_is_empty_or_too_long_is_refused_and_costs_its_pair_only(model: Matcher, text: str) -> None:
    model.check_texts(["a", " ".join(["w1"] * 62)])
    with pytest.raises(UsageError, match=r"empty|65 tokens, this model reads at most 64"):
        model.check_texts(["a", text])
    with pytest.raises(UsageError):
        model.embed_texts([text])
    session = model.start_match(capacity=None)
    first, refused, last = results_of(session, PIXELS[:1], prompts([0], ["a", text, "w5"]))
    assert isinstance(refused, ImageError)
    assert refused.code == "unsupported"
    assert {type(first), type(last)} == {MatchScore}


def test_a_special_token_in_a_text_is_ordinary_text(model: Matcher) -> None:
    ids = model.tokenise("a <pad> b")
    assert model.tokenizer.pad_token_id not in ids
    assert ids[0] == model.tokenizer.bos_token_id != ids[1]


def test_pairs_that_do_not_fit_are_scored_in_halves_and_one_that_never_fits_fails_alone(
    model: Matcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, sizes = model.score, list[int]()

    def limited(features: Any, images: Sequence[int], texts: Any, vectors: Any) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 2 or 3 in images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(features, images, texts, vectors)

    monkeypatch.setattr(model, "score", limited)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    session = model.start_match(capacity=8)
    found = results_of(session, PIXELS, prompts(range(5), ["a"]))
    assert [isinstance(result, MatchScore) for result in found] == [True, True, True, False, True]
    assert found[3].code == "out_of_memory"
    assert sizes[:3] == [5, 2, 2]
    monkeypatch.undo()
    whole = results_of(model.start_match(capacity=8), PIXELS, prompts(range(5), ["a"]))
    np.testing.assert_allclose([found[0].itm, found[4].itm], [whole[0].itm, whole[4].itm], **CLOSE)


def test_images_that_do_not_fit_raise_a_memory_error(model: Matcher, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pixels: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.network.vision_model, "forward", fail)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for session in (model.start_match(capacity=None), model.start_embed("pooled", normalised=True, capacity=None)):
        with pytest.raises(MemoryError):
            session.encode(PIXELS)


def test_a_score_that_overflows_is_an_error_that_says_what_to_do(model: Matcher) -> None:
    weight = model.network.itm_head.weight.data
    before = weight.clone()
    weight[:] = float("nan")
    (result,) = results_of(model.start_match(capacity=None), PIXELS[:1], prompts([0], ["a"]))
    weight[:] = before
    assert isinstance(result, ImageError)
    assert "float32" in str(result)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same(folder: Path, dtype: str) -> None:
    found, exact = scores_of(load_model(folder, dtype=dtype)), scores_of(load_model(folder))
    assert abs(found - exact).max() < 0.1
    assert np.corrcoef(found[..., 1].ravel(), exact[..., 1].ravel())[0, 1] > 0.99


@pytest.mark.skipif(not cpu_can_int8(), reason="needs an x86 processor")
def test_weights_of_the_vision_encoder_can_be_quantised(folder: Path) -> None:
    quantised = load_model(folder, quantize="int8-dynamic")
    assert quantised.quantize == "int8-dynamic"
    assert type(quantised.network.itm_head) is torch.nn.Linear
    found, exact = scores_of(quantised), scores_of(load_model(folder))
    assert 0 < abs(found - exact).max() < 0.2


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"quantize": "nf4"}, "Use int8-dynamic or fp8"), ({"device_map": "auto", "device": "auto"}, "fits one GPU")],
)
def test_options_that_such_a_model_does_not_have_are_refused(
    folder: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        load_model(folder, **options)


def test_a_qformer_that_reads_no_text_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["qformer_config"]["use_qformer_text_input"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="its Q-Former reads no text"):
        load_model(tmp_path)


def test_random_weights_need_neither_weights_nor_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    model = load_model(tmp_path, random_weights=True)
    found = scores_of(model, texts=["t9 t10", "t11"])
    assert found.shape == (5, 2, 2)
    assert np.isfinite(found).all()


def test_unknown_vectors_are_refused(model: Matcher) -> None:
    for call in (model.embedding_shape, functools.partial(model.start_embed, normalised=True, capacity=None)):
        with pytest.raises(UsageError, match="what patches: this model has pooled and queries and qformer"):
            call("patches")
    assert [model.embedding_shape(what) for what in WHAT] == [(16,), (4, 16), (4, 32)]
