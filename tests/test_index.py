"""Searching: scores by their definition, what a scan finds, and indexes that cannot be read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip2cap.errors import InputError, OutputRefusedError, UsageError
from blip2cap.index.codes import code_blocks, distances, pack, representatives
from blip2cap.index.index import Index
from blip2cap.index.scores import best_scores
from tests.indexes import make_index, random_vectors

VECTORS = random_vectors(900, (4, 40), seed=1)
NAMES = [f"{'cats' if number % 3 else 'dogs'}/{number:04}.jpg" for number in range(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of three segments, of which two images were removed. Not to be changed."""
    return make_index(
        tmp_path_factory.mktemp("index"), VECTORS, NAMES, sizes=[500, 1, 399], removed=[NAMES[3], NAMES[600]]
    )


def scores_of(queries: Any) -> Any:
    """The score of every image, by its definition."""
    found = (VECTORS.astype(np.float64) @ np.asarray(queries, np.float64).T).max(axis=(1, 2))
    found[[3, 600]] = -np.inf
    return found


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("num_queries", [1, 4])
def test_hits_are_the_images_with_the_highest_scores(folder, exact, num_queries):
    index = Index.open(folder)
    queries = random_vectors(1, (num_queries, 40), seed=9)[0].astype(np.float32)
    hits = index.search(queries, k=7, exact=exact)
    scores = scores_of(queries)
    best = np.argsort(-scores)[:7]
    assert [hit.file_name for hit in hits] == [NAMES[at] for at in best]
    np.testing.assert_allclose([hit.score for hit in hits], scores[best], atol=1e-5)
    assert hits[0].path == f"/images/{hits[0].file_name}"


@pytest.mark.parametrize("exact", [True, False])
def test_negative_queries_are_subtracted(folder, exact):
    queries, negative = random_vectors(2, (2, 40), seed=5).astype(np.float32)
    hits = Index.open(folder).search(queries, negative=negative, k=5, exact=exact)
    expected = scores_of(queries) - np.where(np.isinf(scores_of(negative)), 0, scores_of(negative))
    assert [hit.file_name for hit in hits] == [NAMES[at] for at in np.argsort(-expected)[:5]]


@pytest.mark.parametrize("exact", [True, False])
def test_patterns_and_a_least_score_restrict_hits(folder, exact):
    index = Index.open(folder)
    query = VECTORS[2, :1].astype(np.float32)
    every = index.search(query, k=index.num_images, exact=exact)
    dogs = index.search(query, k=index.num_images, include=["dogs/"], exact=exact)
    assert dogs == [hit for hit in every if hit.file_name.startswith("dogs/")]
    assert len(dogs) == 300 - 2
    high = index.search(query, k=index.num_images, min_score=0.5, exact=exact)
    assert high == [hit for hit in every if hit.score >= 0.5]
    assert 0 < len(high) < len(every)
    with pytest.raises(InputError, match="include nothing/: no image in"):
        index.search(query, include=["nothing/"], exact=exact)
    with pytest.raises(UsageError, match="matches nothing"):
        index.search(query, include=["# comment"])


def test_equal_scores_come_in_the_order_of_the_index(tmp_path):
    same = np.repeat(VECTORS[:1], 700, axis=0)
    index = Index.open(make_index(tmp_path, same))
    for exact in (True, False):
        hits = index.search(same[0, :1].astype(np.float32), k=30, exact=exact)
        assert [hit.file_name for hit in hits] == [f"{number:06}.jpg" for number in range(30)]


def test_the_scan_finds_what_an_exact_search_finds(tmp_path):
    vectors = random_vectors(20_000, (4, 64), seed=3)
    index = Index.open(make_index(tmp_path, vectors, sizes=[9000, 11_000]))
    found = 0
    for at in range(0, 20_000, 1000):
        query = vectors[at, :1] + random_vectors(1, (1, 64), seed=at)[0]
        query = (query / np.linalg.norm(query)).astype(np.float32)
        exact = index.search(query, k=10, exact=True)
        scanned = index.search(query, k=10, exact=False)
        assert index.search(query, k=10) == scanned  # a large index is scanned
        found += len({hit.file_name for hit in exact} & {hit.file_name for hit in scanned})
    assert found >= 0.98 * 20 * 10


def test_the_scan_finds_a_row_whose_signs_are_those_of_the_query(tmp_path):
    rng = np.random.default_rng(8)
    half = rng.choice([-0.125, 0.125], (3000, 1, 64)).astype(np.float16)
    vectors = np.concatenate([half, -half])  # their mean is 0
    index = Index.open(make_index(tmp_path, vectors))
    for at in (0, 2999, 3000, 5999):
        (hit,) = index.search(vectors[at].astype(np.float32), k=1, exact=False)
        assert hit.file_name == f"{at:06}.jpg"
        assert hit.score == pytest.approx(1)
        assert hit.score <= np.float32(1.0000002)


def test_the_scan_takes_few_vectors_of_many_that_are_alike(tmp_path):
    alike = random_vectors(1, (32, 256), spread=0.05)[0]
    different = random_vectors(32, (1, 256), spread=1.0)[:, 0]
    assert len(representatives(pack(alike))) == 1
    few = representatives(pack(different))
    assert len(few) == 4
    assert {row.tobytes() for row in few} < {row.tobytes() for row in pack(different)}


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-7])
def test_scores_are_those_of_float16_numbers_also_of_the_smallest(scale):
    images = (random_vectors(70, (3, 24)).astype(np.float32) * scale).astype(np.float16)
    queries = random_vectors(1, (2, 24), seed=7)[0].astype(np.float32)
    expected = (images.astype(np.float64) @ queries.astype(np.float64).T).max(axis=(1, 2))
    np.testing.assert_allclose(best_scores(images, queries), expected, rtol=1e-5, atol=1e-12)
    chosen = np.array([3, 4, 69])
    np.testing.assert_allclose(best_scores(images, queries, chosen), expected[chosen], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("length", [24, 64, 100, 256])
@pytest.mark.parametrize("num_images", [1, 300, 9000])
def test_distances_count_different_signs(length, num_images):
    rng = np.random.default_rng(length)
    images = rng.standard_normal((num_images, 2, length)).astype(np.float16)
    centre = rng.standard_normal(length).astype(np.float32) / 4
    queries = rng.standard_normal((3, length)).astype(np.float32)
    codes = np.stack(list(code_blocks(images, centre)))
    different = ((images.astype(np.float32) > centre)[:, :, None] != (queries > 0)[None, None]).sum(axis=3)
    np.testing.assert_array_equal(distances(codes, num_images, pack(queries)), different.min(axis=(1, 2)))


def test_k_is_checked_and_by_default_no_more_than_there_are_images(tmp_path, folder):
    index, query = Index.open(folder), VECTORS[0, :1].astype(np.float32)
    for k in (0, -1, 899):
        with pytest.raises(UsageError, match=f"-k {k}: expected 1 to 898"):
            index.search(query, k=k)
    assert len(index.search(query)) == 20
    small = Index.open(make_index(tmp_path, VECTORS[:3]))
    assert len(small.search(query)) == 3


@pytest.mark.parametrize(
    "vectors", [np.zeros((0, 40)), np.zeros((1, 39)), np.zeros((1, 1, 40)), np.full((1, 40), np.nan)]
)
def test_vectors_that_do_not_fit_are_refused(folder, vectors):
    with pytest.raises(UsageError, match="expected"):
        Index.open(folder).search(vectors)


def test_names_and_vectors_are_those_that_were_indexed(folder):
    index = Index.open(folder)
    assert index.names == [name for name in NAMES if name not in (NAMES[3], NAMES[600])]
    np.testing.assert_array_equal(index.vectors_of(NAMES[500]), VECTORS[500].astype(np.float32))
    for name in (NAMES[3], "nothing.jpg"):
        with pytest.raises(InputError, match=r"no image of that name"):
            index.vectors_of(name)


def test_what_is_no_index_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.json").write_text('{"books": 1}')
    for place, message in (("none", "no such index"), ("file", "a file"), (".", "no index.json"), ("other", "not of")):
        with pytest.raises(InputError, match=f"{message}.* made by `blip2cap index`"):
            Index.open(tmp_path / place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "has format 2, this blip2cap reads 1"),
        ({"segments": [{"name": "../elsewhere", "num_vectors": 1, "images": "a"}]}, "name '../elsewhere'"),
        ({"segments": [{"name": "x"}]}, "no field 'num_vectors'"),
        ({"segments": 3}, "not iterable"),
        ({"shape": [4]}, "is damaged"),
        ({"shape": [4, 41]}, "is damaged"),
        ({"settings": None}, "is damaged"),
        ({"surprise": 1}, "unexpected keyword"),
        ({"codes": "../x.npy"}, "name '../x.npy'"),
    ],
)
def test_an_index_json_with_a_wrong_content_is_refused(folder, tmp_path, change, message):
    shutil.copytree(folder, tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(OutputRefusedError, match=message):
        Index.open(tmp_path / "index")


def test_a_file_that_is_cut_anywhere_or_is_another_is_refused(folder, tmp_path):
    names = ["index.json", *(f"segment-000001/{name}" for name in ("images-1.arrow", "vectors.npy", "codes-1.npy"))]
    for name in names:
        content = (folder / name).read_bytes()
        for left in (0, 1, 8, 100, len(content) // 2, len(content) - 3):
            copy = Path(shutil.copytree(folder, tmp_path / "copy"))
            (copy / name).write_bytes(content[:left])
            with pytest.raises(OutputRefusedError, match=r"is damaged: "):
                Index.open(copy)
            shutil.rmtree(copy)
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        (copy / name).unlink()
        with pytest.raises((OutputRefusedError, InputError), match=r"missing|not an index"):
            Index.open(copy)
        shutil.rmtree(copy)


def test_an_array_of_objects_is_not_loaded(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "index")
    np.save(tmp_path / "index" / "segment-000001" / "vectors.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(OutputRefusedError, match="is damaged"):
        Index.open(tmp_path / "index")


def test_an_index_that_is_replaced_while_it_is_opened_is_opened_as_it_is_then(folder, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(folder, tmp_path / "index"))
    read = Index.open.__globals__["Catalog"].read
    num_reads = 0

    def replaced_once(path: Path) -> Any:
        nonlocal num_reads
        catalog = read(path)
        num_reads += 1
        if num_reads == 1:
            inner = path / "segment-000002"
            os.rename(inner / "images-1.arrow", inner / "images-2.arrow")
            content = json.loads((path / "index.json").read_text())
            content["segments"][1]["images"] = "images-2.arrow"
            (path / "index.json").write_text(json.dumps(content))
        return catalog

    monkeypatch.setattr(Index.open.__globals__["Catalog"], "read", replaced_once)
    assert Index.open(copy).num_images == 898
