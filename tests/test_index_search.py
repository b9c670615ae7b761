"""Searching with a stand-in for the model: vectors of words and of colours, and a match head that reads names."""

from __future__ import annotations

import math
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from blip2cap.errors import ImageError, InputError, ModelError, UsageError
from blip2cap.index.encoder import Encoder, log_odds
from blip2cap.index.hits import Hit
from blip2cap.index.index import Index
from blip2cap.index.places import Places, member_of
from blip2cap.index.query import Query
from blip2cap.index.searcher import Searcher
from blip2cap.models.checkpoint import TINY_ITM, find
from blip2cap.options import DecodeOptions, ModelOptions
from blip2cap.records import ImageRef
from tests.fake_hub import serve
from tests.indexes import make_index

ROWS, LENGTH = 4, 16
WORDS = ("cat", "dog", "sea")


def word_vector(word: str) -> Any:
    vector = np.zeros(LENGTH, np.float32)
    vector[WORDS.index(word)] = 1
    return vector


def image_vectors(*words: str) -> Any:
    """Rows of the words, in turn, with little of everything in each."""
    rows = np.full((ROWS, LENGTH), 0.01, np.float32)
    for number in range(ROWS):
        rows[number] += word_vector(words[number % len(words)])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class FakeEncoder:
    """Knows words; an image file holds those in its name; the match head likes what `liked` says."""

    def __init__(self, liked: dict[str, float | ImageError] | None = None) -> None:
        self.liked = liked or {}
        self.asked: list[Any] = []
        self.only_texts = False

    def embed_texts(self, texts: Sequence[str], *, only_texts: bool = False) -> Any:
        self.asked.append(tuple(texts))
        self.only_texts = only_texts
        return np.stack([word_vector(text) for text in texts])

    def embed_images(self, refs: Sequence[ImageRef]) -> list[Any]:
        return [image_vectors(*Path(ref.path).stem.split("-")) for ref in refs]

    def match(self, text: str, refs: Sequence[ImageRef]) -> list[Any]:
        self.asked.append((text, tuple(ref.name for ref in refs)))
        return [self.liked[ref.name] for ref in refs]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    images = {
        "cat.png": image_vectors("cat"),
        "cat-sea.png": image_vectors("cat", "sea"),
        "dog.png": image_vectors("dog"),
        "dog-sea.png": 0.9 * image_vectors("dog", "sea"),
        "pets/cat-dog.png": 0.8 * image_vectors("cat", "dog"),
    }
    vectors = np.stack([*images.values()]).astype(np.float16)
    return Index.open(make_index(tmp_path / "my.index", vectors, [*images]))


def names(searcher: Searcher, query: Query, **options: Any) -> list[str]:
    ((found, hits),) = searcher.search([query], **options)
    assert found is query
    return [hit.file_name for hit in hits]


def searcher(index: Index, encoder: Any = None) -> Searcher:
    return Searcher(index, encoder=cast(Any, encoder or FakeEncoder()))


def test_a_text_finds_the_images_that_have_it_in_any_row(index: Index) -> None:
    assert names(searcher(index), Query(text="sea"), k=2) == ["cat-sea.png", "dog-sea.png"]
    assert names(searcher(index), Query(text="cat"), min_score=0.5) == ["cat.png", "cat-sea.png", "pets/cat-dog.png"]
    assert names(searcher(index), Query(text="cat"), include=["pets/"]) == ["pets/cat-dog.png"]
    assert len(names(searcher(index), Query(text="cat"))) == 5


def test_the_vision_encoder_is_loaded_only_for_images(tmp_path: Path, index: Index) -> None:
    (tmp_path / "dog.png").touch()
    for query, options, expected in (
        (Query(text="sea", without=("dog",), like=("cat.png",)), {}, True),
        (Query(text="sea", images=(str(tmp_path / "dog.png"),)), {}, False),
        (Query(text="sea"), {"rerank": 1}, False),
    ):
        encoder = FakeEncoder(dict.fromkeys(index.names, 0.5))
        names(searcher(index, encoder), query, **options)
        assert encoder.only_texts == expected
    settings = {"model": "tiny-itm", "model_commit": find(ModelOptions(name="tiny-itm")).commit}
    real = Encoder(settings=settings, options=ModelOptions(dtype="float32"))
    found = real.embed_texts(["a boat"], only_texts=True)
    assert "model" not in vars(real)
    np.testing.assert_allclose(real.embed_texts(["a boat"]), found, atol=1e-6)
    assert "_text_model" not in vars(real)
    real.embed_texts(["a boat"], only_texts=True)
    assert "_text_model" not in vars(real)


def test_several_texts_have_hits_each_and_are_embedded_at_once(index: Index) -> None:
    encoder = FakeEncoder()
    queries = [Query(text="cat", without=("sea",)), Query(text="dog"), Query(text="cat")]
    found = [[hit.file_name for hit in hits] for _, hits in searcher(index, encoder).search(queries, k=1)]
    assert found == [["cat.png"], ["dog.png"], ["cat.png"]]
    assert encoder.asked == [("cat", "sea", "dog")]


def test_a_text_that_is_not_wanted_is_subtracted(index: Index) -> None:
    assert names(searcher(index), Query(text="sea", without=("cat",)), k=1) == ["dog-sea.png"]
    assert names(searcher(index), Query(text="sea", without=("cat", "dog")), k=5)[-1] in ("cat.png", "dog.png")


def test_an_image_of_the_index_finds_others_like_it_and_not_itself_without_a_model(index: Index) -> None:
    alone = Searcher(index)
    assert names(alone, Query(like=("cat.png",)), k=2) == ["cat-sea.png", "pets/cat-dog.png"]
    assert alone._encoder is None
    assert names(alone, Query(like=("cat.png",)), k=5) == [
        *("cat-sea.png", "pets/cat-dog.png", *names(alone, Query(like=("cat.png",)), k=4)[2:])
    ]
    with pytest.raises(InputError, match=r"bird\.png: no image of that name"):
        names(alone, Query(like=("bird.png",)))


def test_a_file_finds_images_like_it(index: Index, tmp_path: Path) -> None:
    (tmp_path / "dog.png").touch()
    query = Query(images=(str(tmp_path / "dog.png"),))
    assert names(searcher(index), query, k=3) == ["dog.png", "dog-sea.png", "pets/cat-dog.png"]
    with pytest.raises(InputError, match=r"image .*bird\.png: no such file"):
        names(searcher(index), Query(images=("bird.png",)))


def test_a_text_and_an_image_find_what_resembles_both(index: Index) -> None:
    rows = image_vectors("cat") + word_vector("dog")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = [hit.file_name for hit in index.search(rows, k=5) if hit.file_name != "cat.png"]
    assert names(searcher(index), Query(text="dog", like=("cat.png",)), k=4) == expected


def test_the_best_are_sorted_again_by_the_match_head_and_others_follow(index: Index) -> None:
    by_cosine = names(searcher(index), Query(text="cat"))
    assert by_cosine[:3] == ["cat.png", "cat-sea.png", "pets/cat-dog.png"]
    encoder = FakeEncoder({"cat.png": 0.2, "cat-sea.png": 0.5, "pets/cat-dog.png": 0.9})
    ((_, hits),) = searcher(index, encoder).search([Query(text="cat")], rerank=3)
    assert [hit.file_name for hit in hits] == ["pets/cat-dog.png", "cat-sea.png", "cat.png", *by_cosine[3:]]
    assert [hit.itm for hit in hits] == [0.9, 0.5, 0.2, None, None]
    assert encoder.asked[1:] == [("cat", tuple(by_cosine[:3]))]
    # More are read than are wanted: the last of them may become the first.
    assert names(searcher(index, encoder), Query(text="cat"), rerank=3, k=1) == ["pets/cat-dog.png"]


def test_the_cosine_decides_between_equal_probabilities_and_log_odds_are_finite(index: Index) -> None:
    for probability in (0.0, 0.5, 1.0):
        encoder = FakeEncoder(dict.fromkeys(index.names, probability))
        assert names(searcher(index, encoder), Query(text="cat"), rerank=5) == names(searcher(index), Query(text="cat"))
    assert log_odds(0.5) == 0
    assert log_odds(0.9) == pytest.approx(math.log(9))
    assert log_odds(1.0) == pytest.approx(-log_odds(0.0)) == pytest.approx(15.9, abs=0.1)


def test_an_image_that_cannot_be_read_again_is_reported_and_comes_after_those_that_can(index: Index) -> None:
    gone = ImageError("vanished", "no such file")
    encoder = FakeEncoder({"cat.png": gone, "cat-sea.png": 0.5, "pets/cat-dog.png": 0.9})
    failures: list[tuple[str, ImageError]] = []
    ((_, hits),) = searcher(index, encoder).search(
        [Query(text="cat")], rerank=3, k=3, on_failure=lambda ref, error: failures.append((ref.name, error))
    )
    assert [hit.file_name for hit in hits] == ["pets/cat-dog.png", "cat-sea.png", "cat.png"]
    assert failures == [("cat.png", gone)]


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ({"text": "cat"}, {"k": 0}, "k 0: expected 1 to 5"),
        ({"text": "cat"}, {"k": 6}, "k 6: expected 1 to 5"),
        ({"text": "cat"}, {"rerank": 0}, "rerank 0: expected 1 to 5"),
        ({"text": "cat"}, {"rerank": 6}, "rerank 6"),
        ({"text": "cat", "like": ("dog.png",)}, {"rerank": 2}, "exclude it"),
        ({"text": "cat", "without": ("dog",)}, {"rerank": 2}, "exclude it"),
        ({"like": ("dog.png",)}, {"rerank": 2}, "exclude it"),
        ({"text": "cat"}, {"include": ["!"]}, "include"),
    ],
)
def test_options_that_cannot_be_are_refused(
    index: Index, query: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        names(searcher(index), Query(**query), **options)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "nothing to search for"),
        ({"without": ("cat",)}, "nothing to search for"),
        ({"text": ""}, "query is empty"),
        ({"text": " \n"}, "query is empty"),
        ({"text": "cat", "without": ("",)}, "not is empty"),
    ],
)
def test_an_empty_query_is_refused(query: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Query(**query)


def test_a_query_is_named_by_its_parts() -> None:
    assert Query(text="a cat").label == "a cat"
    assert Query(text="a cat", images=("x.png",), like=("y.png",), without=("a", "b")).label == (
        "a cat + x.png + y.png - a - b"
    )


def test_an_empty_index_says_so(tmp_path: Path) -> None:
    path = make_index(tmp_path / "my.index", np.zeros((1, ROWS, LENGTH), np.float16), ["a.png"], removed=["a.png"])
    with pytest.raises(InputError, match="has no images"):
        names(searcher(Index.open(path)), Query(text="cat"))


def test_members_of_archives_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{name}.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "red.png", "a#b/red.png")
        archive.add(tmp_path / "blue.png", "blue.png")
    tar = str(tmp_path / "x.tar")
    hits = [Hit(file_name=f"in/x.tar#{name}", path=tar, score=1.0) for name in ("blue.png", "a#b/red.png", "no.png")]
    hits.append(Hit(file_name="red.png", path=str(tmp_path / "red.png"), score=1.0))
    hits.append(Hit(file_name="gone.tar#x.png", path=str(tmp_path / "gone.tar"), score=1.0))
    assert [member_of(hit)[1] for hit in hits] == ["blue.png", "a#b/red.png", "no.png", "", "x.png"]
    places = Places()
    refs = [places.ref(hit) for hit in hits]
    assert [ref.name for ref in refs] == [hit.file_name for hit in hits]
    assert [ref.error for ref in refs] == ["", "", "vanished", "", "vanished"]
    from blip2cap.decode.read import read

    assert read(refs[0], DecodeOptions()) == (tmp_path / "blue.png").read_bytes()
    assert read(refs[1], DecodeOptions()) == (tmp_path / "red.png").read_bytes()


@pytest.mark.parametrize(
    ("settings", "name", "error", "message"),
    [
        (
            {"model": "org/one", "model_commit": "a" * 40},
            "org/two",
            UsageError,
            "model org/two: the index was made with",
        ),
        ({"model": "org/one", "model_commit": "a" * 40}, "tiny", UsageError, "the index was made with org/one"),
        ({"model": "/old/place", "model_commit": "sha256:1"}, None, ModelError, "no such folder"),
        ({"model": "tiny", "model_commit": "sha256:1"}, None, ModelError, "tiny has changed since the index was made"),
        ({"model": "tiny", "model_commit": "sha256:1"}, "tiny", UsageError, "the index was made with tiny"),
    ],
)
def test_another_model_or_another_revision_is_refused(
    settings: dict[str, Any], name: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _ = Encoder(settings=settings, name=name).checkpoint


def test_a_model_on_the_hub_is_taken_at_the_commit_of_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(monkeypatch, tmp_path / "cache") as hub:
        hub.repositories["org/small"] = TINY_ITM
        settings = {"model": "org/small", "model_commit": hub.commit("org/small")}
        encoder = Encoder(settings=settings, options=ModelOptions(dtype="float32"))
        assert encoder.checkpoint.commit == hub.commit("org/small")
        assert encoder.embed_texts(["a boat"]).shape == (1, 256)
        files = [line for line in hub.asked if "/resolve/" in line]
        assert files
        assert all(f"/resolve/{encoder.checkpoint.commit}/" in line for line in files)


def test_the_model_of_an_index_may_have_been_moved(tmp_path: Path) -> None:
    commit = find(ModelOptions(name="tiny-itm")).commit
    moved = shutil.copytree(TINY_ITM, tmp_path / "moved", ignore=shutil.ignore_patterns("*.md"))
    settings = {"model": "/where/it/was", "model_commit": commit}
    assert Encoder(settings=settings, name=str(moved)).checkpoint.folder == moved
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    with pytest.raises(UsageError, match="the index was made with /where/it/was"):
        _ = Encoder(settings=settings, name=str(moved)).checkpoint
