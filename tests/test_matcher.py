"""Matching from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip2cap import Captioner, Matcher
from blip2cap.errors import ImageError, UsageError
from blip2cap.images_in_memory import ImageLike
from blip2cap.records import MatchScore
from tests.matching import FakeMatcher

Model = tuple[str, str]


@pytest.fixture
def matcher(model: Model) -> Matcher:
    return Matcher.load(model[1])


def test_scores_come_by_image_and_text(matcher: Matcher, images: Path) -> None:
    scores = matcher.match([images / "a.png", str(images / "sub" / "c.png")], ["red", "blue"])
    assert scores == [
        [MatchScore(itm=1.0, itc=1.0), MatchScore(itm=0.0, itc=-1.0)],
        [MatchScore(itm=0.4, itc=-0.2), MatchScore(itm=0.8, itc=0.6)],
    ]


def test_an_image_is_encoded_once_in_whatever_form_it_comes(matcher: Matcher, images: Path) -> None:
    image = Image.open(images / "a.png")
    array = np.asarray(image)
    forms: list[ImageLike] = [images / "a.png", image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    assert matcher.match(forms, ["red", "green"]) == [matcher.match([image], ["red", "green"])[0]] * 4
    assert isinstance(matcher.model, FakeMatcher)
    assert matcher.model.num_encoded == 2


@pytest.mark.parametrize(("what", "shape"), [("pooled", (6,)), ("queries", (3, 6)), ("qformer", (3, 4))])
def test_vectors_are_arrays(what: str, shape: tuple[int, ...], matcher: Matcher, images: Path) -> None:
    vectors = matcher.embed([images / "a.png", images / "b.png"], what=what)
    assert (vectors.shape, str(vectors.dtype)) == ((2, *shape), "float32")
    assert np.allclose(np.linalg.norm(vectors, axis=-1), 1)
    assert not np.allclose(np.linalg.norm(matcher.embed([images / "a.png"], what=what, raw=True), axis=-1), 1)
    assert matcher.embed([], what=what).shape == (0, *shape)


def test_texts_have_vectors_in_the_same_space(matcher: Matcher, images: Path) -> None:
    vectors = matcher.embed_texts(["red", "blue"])
    assert np.argmax(vectors @ matcher.embed([images / "a.png"])[0]) == 0


def test_what_is_wrong_is_said(matcher: Matcher, images: Path) -> None:
    with pytest.raises(ImageError, match=r"none.png: vanished"):
        matcher.match([images / "a.png", images / "none.png"], ["red"])
    with pytest.raises(UsageError, match="given twice"):
        matcher.match([images / "a.png"], ["red", "red"])
    with pytest.raises(UsageError, match="too long"):
        matcher.match([images / "a.png"], ["red " * 20])
    with pytest.raises(UsageError, match="no text given"):
        matcher.match([images / "a.png"], [])
    with pytest.raises(UsageError, match="must be one of"):
        matcher.embed([images / "a.png"], what="all")
    with pytest.raises(TypeError, match="one str"):
        matcher.match([images / "a.png"], "red")
    with pytest.raises(TypeError, match="put it in a list"):
        matcher.embed(images / "a.png")  # type: ignore[arg-type]


def test_a_captioner_embeds_for_its_language_model_only(images: Path) -> None:
    with pytest.raises(UsageError, match="cannot match"):
        Matcher.load("tiny")
    matcher = Matcher(Captioner.load("tiny").model)
    assert matcher.embed([images / "a.png"], what="qformer").ndim == 3
    with pytest.raises(UsageError, match="qformer"):
        matcher.embed([images / "a.png"])
    with pytest.raises(UsageError, match="cannot match"):
        matcher.embed_texts(["red"])
