"""An index on disk, opened for searching: mapped into memory, so that opening it reads next to nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2cap.errors import InputError, UsageError
from blip2cap.index.catalog import Catalog, damaged
from blip2cap.index.codes import distances, pack, representatives
from blip2cap.index.hits import Hit
from blip2cap.index.scores import image_scores
from blip2cap.index.segment import VECTORS, Segment

if TYPE_CHECKING:
    import os

DEFAULT_K = 20
EXACT_BELOW = 5_000
"""Up to this number of images all scores are computed."""
_LEAST_STEP = 150
"""Number of images that are scored exactly at once after a scan; more in a large index."""
_STEPS_IN_INDEX = 3000
_IDLE_STEPS = 3
"""Steps in a row without an image among the best, after which a search ends."""
_MOST_IMAGES = 70
"""Length of all steps, as a multiple of the first."""
_LONGEST_ROW = 1.01
"""Largest length of a row that was normalised, as float16 stores it."""
_OPENINGS = 5
"""Attempts to open an index that is being brought up to date."""


class Index:
    """An index as it was when it was opened; `index` may change the folder meanwhile."""

    def __init__(self, folder: Path, catalog: Catalog, segments: Sequence[Segment]) -> None:
        self.folder, self.catalog = folder, catalog
        self.segments = tuple(segments)
        self._starts = np.cumsum([0, *(len(each.vectors) for each in segments)])
        self._live = np.concatenate([each.live for each in segments]) if segments else np.empty(0, bool)
        self.num_images = int(self._live.sum())
        """Number of images that can be found."""
        self._positions: dict[str, int] | None = None
        self._selections: dict[tuple[str, ...], Any] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Index:
        """Open an index.

        Raises InputError if there is none, OutputRefusedError if it is damaged or of a later release.
        """
        folder = Path(path)
        for attempt in range(1, _OPENINGS + 1):
            catalog = Catalog.read(folder)
            try:
                segments = [Segment.open(folder, each, catalog.shape, catalog.codes) for each in catalog.segments]
                return cls(folder, catalog, segments)
            except FileNotFoundError as error:  # a run has just replaced it: its index.json names another
                missing = error
                if attempt < _OPENINGS and Catalog.read(folder) != catalog:
                    continue
                break
        raise damaged(Path(str(missing.filename or folder)), "it is missing") from missing

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the run that made the embeddings: model, model_commit, dtype, input_root and others."""
        return self.catalog.settings

    @property
    def names(self) -> list[str]:
        """File names of all images, in the order in which they were added."""
        names = [name for segment in self.segments for name in segment.names()]
        return [names[at] for at in np.flatnonzero(self._live)]

    def search(
        self,
        vectors: Any,
        *,
        negative: Any | None = None,
        k: int | None = None,
        include: Sequence[str] = (),
        min_score: float | None = None,
        exact: bool | None = None,
    ) -> list[Hit]:
        """Return the images with the highest scores, the best first; equal scores in the order of the index.

        The score of an image is the largest dot product of any of its rows with any of `vectors`, minus the same for
        `negative`: float32 [R, length], normalised. `k` is the largest number of hits; None: 20, or all of a smaller
        index. `include` takes patterns as in .gitignore. `exact` computes all scores, which takes long for a large
        index; None does so for a small one. Otherwise scores are exact too, but an image may be missed.

        Raises UsageError if k is below 1 or above the number of images, min_score is NaN, or a pattern is invalid,
        InputError if no name matches `include`.
        """
        if min_score is not None and math.isnan(min_score):
            raise UsageError("--min-score nan: expected a number.")
        queries, minus = self._queries(vectors), None if negative is None else self._queries(negative)
        k = self._checked(k)
        wanted = self._live & self._selected(tuple(include)) if include else self._live
        num_wanted = int(wanted.sum())
        if include and not num_wanted:
            raise InputError(f"--include {' '.join(include)}: no image in {self.folder} has a name that matches.")
        if exact or num_wanted <= (EXACT_BELOW if exact is None else 0):
            chosen = np.flatnonzero(wanted)
            scores = self._scores(chosen, queries, minus)
        else:
            chosen, scores = self._scan(queries, minus, wanted, k)
        if minus is None:  # rows have length 1, as float16 stores it: a cosine is not above 1
            scores = np.minimum(scores, np.linalg.norm(queries, axis=1).max())
        best = _largest(scores, k)
        return [self._hit(chosen[at], scores[at]) for at in best if min_score is None or float(scores[at]) >= min_score]

    def vectors_of(self, file_name: str) -> Any:
        """Return the embedding of an image: float32 [rows, length]. Raises InputError if there is no such image."""
        position = self._position(file_name)
        segment, offset = self._segment(position)
        return segment.vectors[offset].astype(np.float32)

    def hit_of(self, file_name: str) -> Hit:
        """Return an image by its name, with the score 1. Raises InputError if there is no such image."""
        return self._hit(self._position(file_name), 1.0)

    def duplicates(self, min_score: float) -> Iterator[list[Hit]]:
        """Yield groups of near-equal images, see duplicates.py. Raises UsageError for a score that is not in (0, 1]."""
        from blip2cap.index.duplicates import groups

        for group in groups(self.segments, min_score):
            yield [self._hit(position, score) for position, score in group]

    def _queries(self, vectors: Any) -> Any:
        queries = np.atleast_2d(np.asarray(vectors, np.float32))
        length = self.catalog.shape[1]
        if queries.ndim != 2 or queries.shape[1] != length or not len(queries):
            raise UsageError(f"vectors of shape {list(np.shape(vectors))}: expected [R, {length}], as the index has.")
        if not np.isfinite(queries).all():
            raise UsageError("vectors with NaN or infinity: expected finite numbers.")
        return queries

    def _checked(self, k: int | None) -> int:
        if k is None:
            return min(DEFAULT_K, self.num_images)
        if not 1 <= k <= self.num_images:
            raise UsageError(f"-k {k}: expected 1 to {self.num_images}, the number of images in {self.folder}.")
        return k

    def _selected(self, include: tuple[str, ...]) -> Any:
        """Return which vectors have a name that the patterns accept; remembered, as this reads all names."""
        if include not in self._selections:
            from blip2cap.options import SourceOptions
            from blip2cap.source.patterns import Patterns

            patterns = Patterns(SourceOptions(inputs=(".",), include=include))
            names = (name for segment in self.segments for name in segment.paths_in_system())
            accepted = (not patterns.reason_against(name) for name in names)
            self._selections[include] = np.fromiter(accepted, bool, len(self._live))
        return self._selections[include]

    def _scan(self, queries: Any, minus: Any | None, wanted: Any, k: int) -> tuple[Any, Any]:
        """Return positions and exact scores of the images that are nearest by their codes.

        They are scored in steps, the nearest first, until three steps bring no image into the best k. Every step that
        does makes the next ones longer: where codes tell little, as for a text that fits no image well, more are
        scored.
        """
        codes, minus_codes = self._codes(queries), None if minus is None else self._codes(minus)
        nearness = np.concatenate([self._nearness(segment, codes, minus_codes) for segment in self.segments])
        nearness[~wanted] = -np.iinfo(np.int16).max
        step = max(_LEAST_STEP, len(nearness) // _STEPS_IN_INDEX, 2 * k)
        num = min(int(wanted.sum()), _MOST_IMAGES * step)
        nearest = _largest(nearness, num)
        chosen, scores = np.empty(0, nearest.dtype), np.empty(0, np.float32)
        productive = idle = 0
        while len(chosen) < num and idle < _IDLE_STEPS:
            some = np.sort(nearest[len(chosen) : len(chosen) + step * max(1, productive)])
            found = self._scores(some, queries, minus)
            least = np.partition(scores, len(scores) - k)[len(scores) - k] if len(scores) >= k else -np.inf
            improved = bool((found > least).any())
            productive, idle = productive + improved, 0 if improved else idle + 1
            chosen, scores = np.concatenate([chosen, some]), np.concatenate([scores, found])
        order = np.argsort(chosen)
        return chosen[order], scores[order]

    def _codes(self, queries: Any) -> Any:
        """Return the signs of queries, of a few if there are many, packed.

        The centre is subtracted by half. Bits compare angles around the centre, as those of rows do; but the score of a
        query far from all images does not depend on the centre. Half of it found most of the best in both cases.
        """
        return representatives(pack(queries - np.float32(0.5) * np.asarray(self.catalog.centre, np.float32)))

    def _nearness(self, segment: Segment, queries: Any, minus: Any | None) -> Any:
        near = np.negative(distances(segment.codes, len(segment.vectors), queries), dtype=np.int16)
        if minus is not None:
            near += distances(segment.codes, len(segment.vectors), minus)
        return near

    def _scores(self, positions: Any, queries: Any, minus: Any | None) -> Any:
        """Return the exact scores of images, whose positions ascend.

        Raises OutputRefusedError for a score that no rows of length 1 have: a flipped bit of an exponent.
        """
        lengths = [np.linalg.norm(each, axis=1).max() for each in (queries, minus) if each is not None]
        most = _LONGEST_ROW * sum(lengths)
        scores = np.empty(len(positions), np.float32)
        for number, segment in enumerate(self.segments):
            first, last = np.searchsorted(positions, self._starts[number : number + 2])
            offsets = positions[first:last] - self._starts[number]
            whole = len(offsets) == len(segment.vectors)
            found = image_scores(segment.vectors, queries, minus, None if whole else offsets)
            if len(found) and not np.abs(found).max() <= most:
                reason = f"it has numbers above {_LONGEST_ROW:g}, rows of length 1 have none"
                raise damaged(segment.folder / VECTORS, reason)
            scores[first:last] = found
        return scores

    def _position(self, file_name: str) -> int:
        if self._positions is None:
            names = (name for segment in self.segments for name in segment.names())
            self._positions = {name: at for at, name in enumerate(names) if self._live[at]}
        if file_name not in self._positions:
            raise InputError(f"{file_name}: no image of that name in {self.folder}. Names are as in the results.")
        return self._positions[file_name]

    def _segment(self, position: int) -> tuple[Segment, int]:
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self.segments[number], int(position - self._starts[number])

    def _hit(self, position: int, score: float) -> Hit:
        segment, offset = self._segment(position)
        return segment.hit(offset, score, str(self.settings.get("input_root", "")))


def _largest(scores: Any, k: int) -> Any:
    """Return the positions of the k largest, the largest first; equal ones in their order."""
    if len(scores) > 4 * k > 0:
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        some = np.flatnonzero(scores >= least)
    else:
        some = np.arange(len(scores))
    return some[np.argsort(-scores[some], kind="stable")][:k]
