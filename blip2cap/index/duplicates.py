"""Groups of near-equal images.

Two images are near-equal if the cosine of their pooled vectors is at least `min_score`; the pooled vector is the
normalised mean of an image's rows. Groups are transitive: if A is near B and B is near C, all three are one group, also
where A and C are less alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2cap.errors import UsageError
from blip2cap.index.scores import pooled

if TYPE_CHECKING:
    from blip2cap.index.segment import Segment

_BLOCK = 2048
"""Images compared with as many others at once: 16 MB of scores."""
_ROUNDING = 1e-6
"""Cosines of equal vectors differ from 1 by less."""


def groups(segments: Sequence[Segment], min_score: float) -> Iterator[list[tuple[int, float]]]:
    """Yield groups of two or more images as (position, score), the group with the largest score first.

    The score of an image is its largest cosine with another image of its group; in a group, the largest comes first.
    Every image is compared with every other: time grows with the square of their number, memory does not. Raises
    UsageError for a score outside (0, 1].
    """
    if not 0 < min_score <= 1:
        raise UsageError(f"--min-score {min_score}: must be above 0 and at most 1; equal images have 1.")
    live, vectors = _pooled(segments)
    parents = np.arange(len(live))
    best = np.full(len(live), -1.0, np.float32)
    for start in range(0, len(live), _BLOCK):
        one = vectors[start : start + _BLOCK]
        for other in range(start, len(live), _BLOCK):
            scores = one @ vectors[other : other + _BLOCK].T
            if other == start:
                scores[np.tri(len(one), dtype=bool)] = -1  # each pair once, and no image with itself
            if scores.max(initial=-1) < min_score - _ROUNDING:
                continue
            left, right = np.nonzero(scores >= min_score - _ROUNDING)
            found = np.minimum(scores[left, right], 1)
            left, right = left + start, right + other
            np.maximum.at(best, left, found)
            np.maximum.at(best, right, found)
            _join(parents, left, right)
    members = np.flatnonzero(best > -1)
    by_root: dict[int, list[int]] = {}
    for member, root in zip(members.tolist(), _roots(parents, members).tolist(), strict=True):
        by_root.setdefault(root, []).append(member)
    ordered = [sorted(group, key=lambda at: (-best[at], at)) for group in by_root.values()]
    for group in sorted(ordered, key=lambda group: (-best[group[0]], group[0])):
        yield [(int(live[at]), float(best[at])) for at in group]


def _pooled(segments: Sequence[Segment]) -> tuple[Any, Any]:
    """Return positions (int64 [N]) and pooled vectors (float32 [N, length]) of all images that were not removed."""
    live, vectors, start = [np.empty(0, np.int64)], [], 0
    for segment in segments:
        offsets = np.flatnonzero(segment.live)
        live.append(start + offsets)
        vectors.append(pooled(segment.vectors, offsets))
        start += len(segment.vectors)
    return np.concatenate(live), np.concatenate(vectors) if vectors else np.empty((0, 1), np.float32)


def _roots(parents: Any, members: Any) -> Any:
    """Return the root of each member, and point the members at it."""
    roots = parents[members]
    while not np.array_equal(above := parents[roots], roots):
        roots = above
    parents[members] = roots
    return roots


def _join(parents: Any, left: Any, right: Any) -> None:
    """Join the groups of pairs; the root of a group is its first image."""
    while True:
        one, other = _roots(parents, left), _roots(parents, right)
        apart = one != other
        if not apart.any():
            return
        left, right = one[apart], other[apart]
        np.minimum.at(parents, np.maximum(left, right), np.minimum(left, right))
