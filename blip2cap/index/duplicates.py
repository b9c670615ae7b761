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

if TYPE_CHECKING:
    from blip2cap.index.segment import Segment

_BLOCK = 2048
"""Images compared with as many others at once: 16 MB of scores."""
_POOL = 1024


def groups(segments: Sequence[Segment], min_score: float) -> Iterator[list[tuple[int, float]]]:
    """Yield groups of two or more images as (position, score), the group with the largest score first.

    The score of an image is its largest cosine with another image of its group; in a group, the largest comes first.
    Time grows with the square of the number of images, memory does not. Raises UsageError for a score outside (0, 1].
    """
    if not 0 < min_score <= 1:
        raise UsageError(f"--min-score {min_score}: must be above 0 and at most 1; equal images have 1.")
    live, pooled = _pooled(segments)
    parents = np.arange(len(live))
    best = np.full(len(live), -1.0, np.float32)
    for start in range(0, len(live), _BLOCK):
        one = pooled[start : start + _BLOCK]
        for other in range(start, len(live), _BLOCK):
            scores = one @ pooled[other : other + _BLOCK].T
            near = scores >= min_score - 1e-6  # rounding: an image and its copy may have 0.9999999
            if other == start:
                near = np.triu(near, 1)
            for left, right in np.argwhere(near):
                score = min(float(scores[left, right]), 1.0)
                a, b = start + int(left), other + int(right)
                best[a], best[b] = max(best[a], score), max(best[b], score)
                _join(parents, a, b)
    found: dict[int, list[int]] = {}
    for member in np.flatnonzero(best > -1).tolist():
        found.setdefault(_root(parents, member), []).append(member)
    ordered = [sorted(group, key=lambda at: (-best[at], at)) for group in found.values()]
    for group in sorted(ordered, key=lambda group: (-best[group[0]], group[0])):
        yield [(int(live[at]), float(best[at])) for at in group]


def _pooled(segments: Sequence[Segment]) -> tuple[Any, Any]:
    """Return positions (int64 [N]) and pooled vectors (float32 [N, length]) of all images that were not removed."""
    vectors, live, start = [], [], 0
    for segment in segments:
        offsets = np.flatnonzero(segment.live)
        live.append(start + offsets)
        start += len(segment.vectors)
        for at in range(0, len(offsets), _POOL):
            mean = segment.vectors[offsets[at : at + _POOL]].astype(np.float32).mean(axis=1)
            vectors.append(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12))
    if not vectors:
        return np.empty(0, int), np.empty((0, 1), np.float32)
    return np.concatenate(live), np.concatenate(vectors)


def _root(parents: Any, at: int) -> int:
    while parents[at] != at:
        parents[at] = parents[parents[at]]
        at = int(parents[at])
    return at


def _join(parents: Any, one: int, other: int) -> None:
    one, other = _root(parents, one), _root(parents, other)
    parents[max(one, other)] = min(one, other)
