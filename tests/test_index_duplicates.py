"""Groups of near-equal images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip2cap.errors import UsageError
from blip2cap.index import duplicates
from blip2cap.index.index import Index
from blip2cap.index.scores import pooled
from tests.indexes import make_index, random_vectors


def at_angle(vectors: Any, degrees: float) -> Any:
    """Turn all rows by an angle, in the plane of the first two numbers."""
    turned = vectors.astype(np.float32)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    one, other = turned[..., 0].copy(), turned[..., 1].copy()
    turned[..., 0], turned[..., 1] = cos * one - sin * other, sin * one + cos * other
    return turned.astype(np.float16)


def found(folder: Path, min_score: float) -> list[list[str]]:
    return [[hit.file_name for hit in group] for group in Index.open(folder).duplicates(min_score)]


def test_groups_are_transitive_and_scores_are_the_largest_in_the_group(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", 2)  # pairs lie in different blocks
    flat = np.zeros((1, 2, 16), np.float16)
    flat[..., 0] = 1
    others = random_vectors(3, (2, 16), seed=2, spread=0.0)
    vectors = np.concatenate([flat, others[:1], at_angle(flat, 20), others[1:], at_angle(flat, 39), others[:1]])
    names = ["a", "other", "b", "x", "y", "c", "copy"]
    index = make_index(tmp_path, vectors, names, sizes=[3, 4])
    groups = list(Index.open(index).duplicates(0.93))
    assert [[hit.file_name for hit in group] for group in groups] == [["other", "copy"], ["b", "c", "a"]]
    scores = [round(hit.score, 3) for hit in groups[1]]
    assert scores == [round(float(np.cos(np.radians(angle))), 3) for angle in (19, 19, 20)]
    assert [hit.score for hit in groups[0]] == [pytest.approx(1, abs=1e-6)] * 2
    assert found(index, 1.0) == [["other", "copy"]]
    assert found(index, 0.942) == [["other", "copy"], ["b", "c"]]


def test_removed_images_are_in_no_group_and_an_index_without_copies_has_none(tmp_path):
    vectors = random_vectors(40, (2, 64), spread=1.0)
    assert found(make_index(tmp_path / "none", vectors), 0.99) == []
    twice = np.concatenate([vectors, vectors[:2]])
    index = make_index(tmp_path / "two", twice, removed=["000040.jpg"])
    assert found(index, 0.999) == [["000001.jpg", "000041.jpg"]]


def test_many_pairs_make_the_groups_that_one_by_one_they_would(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", 64)
    vectors = random_vectors(500, (3, 24), spread=0.25, seed=4)
    means = pooled(vectors, np.arange(500))
    np.testing.assert_allclose(means, _means(vectors), atol=1e-6)
    near = means @ means.T >= 0.97
    groups, seen = [], set[int]()
    for start in range(500):
        if start in seen:
            continue
        group, left = {start}, [start]
        while left:
            for other in np.flatnonzero(near[left.pop()]).tolist():
                if other not in group:
                    group.add(other)
                    left.append(other)
        seen |= group
        if len(group) > 1:
            groups.append({f"{at:06}.jpg" for at in group})
    assert len(groups) > 20
    assert sorted(map(sorted, found(make_index(tmp_path, vectors), 0.97))) == sorted(map(sorted, groups))


def _means(vectors: Any) -> Any:
    mean = vectors.astype(np.float64).mean(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def test_the_mean_of_zeros_is_zeros():
    assert not pooled(np.zeros((2, 3, 8), np.float16), np.arange(2)).any()


@pytest.mark.parametrize("score", [0, -1, 1.01, float("nan")])
def test_a_score_outside_of_0_to_1_is_refused(tmp_path, score):
    index = Index.open(make_index(tmp_path, random_vectors(3)))
    with pytest.raises(UsageError, match="must be above 0 and at most 1"):
        list(index.duplicates(score))
