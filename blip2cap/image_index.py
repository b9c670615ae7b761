"""The Python interface of an index: made and brought up to date, opened once, searched by text and by image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blip2cap.index.hits import Hit
from blip2cap.index.index import Index as Vectors
from blip2cap.index.job import IndexJob, IndexSummary
from blip2cap.index.query import Query
from blip2cap.index.searcher import Searcher
from blip2cap.index.sheet import Card, Section, SheetCounts, write_sheet
from blip2cap.index.target import HTML, check_target
from blip2cap.jobs.job import Listener
from blip2cap.options import (
    DEFAULT_MATCHING_MODEL,
    BatchOptions,
    DecodeOptions,
    ModelOptions,
    SourceOptions,
)

if TYPE_CHECKING:
    from blip2cap.engine.run import RunStats

StrPath = str | os.PathLike[str]


class Index:
    """An open index. Its model is loaded by the first search that needs it: one by text or by an image file."""

    def __init__(self, searcher: Searcher, vectors: Vectors, decode: DecodeOptions) -> None:
        self._searcher, self._vectors, self._decode = searcher, vectors, decode

    @classmethod
    def open(
        cls,
        path: StrPath,
        *,
        model: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        decode: DecodeOptions | None = None,
    ) -> Index:
        """Open an index. `model` is the folder of its model, if that was moved.

        Raises InputError if there is none, OutputRefusedError if it is damaged.
        """
        vectors, decode = Vectors.open(path), decode or DecodeOptions()
        options = ModelOptions(dtype=dtype, device=device)
        return cls(Searcher(vectors, name=model, model=options, decode=decode), vectors, decode)

    @staticmethod
    def update(
        path: StrPath,
        inputs: StrPath | Sequence[StrPath],
        *,
        model: str = DEFAULT_MATCHING_MODEL,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        batch_size: int | None = None,
        decode: DecodeOptions | None = None,
        allow_removal: bool = False,
        check: bool = False,
        on_progress: Callable[[RunStats], None] = lambda stats: None,
    ) -> IndexSummary:
        """Make an index of images, or bring it up to date: as `blip2cap index` does, and resumed by the same call.

        Images that `inputs` do not hold are removed; more than half of the index only with `allow_removal`.
        `check` reads all of the index, and makes damaged files again.
        Raises Blip2CapError, as `index.update.update_index` does.
        """
        from blip2cap.index.update import update_index

        class Progress(Listener):
            def progress(self, stats: RunStats) -> None:
                on_progress(stats)

        given = (inputs,) if isinstance(inputs, (str, os.PathLike)) else inputs
        job = IndexJob(
            index=os.fspath(path),
            source=SourceOptions(inputs=tuple(os.fspath(each) for each in given)),
            model=ModelOptions(name=model, revision=revision, dtype=dtype, device=device),
            decode=decode or DecodeOptions(),
            batch=BatchOptions(batch_size=batch_size),
            allow_removal=allow_removal,
            check=check,
        )
        return update_index(job, listener=Progress())

    @property
    def num_images(self) -> int:
        """Number of images that can be found."""
        return self._vectors.num_images

    @property
    def names(self) -> list[str]:
        """File names of all images, in the order in which they were added."""
        return self._vectors.names

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that the index was made with: model, model_commit, dtype, input_root and others."""
        return self._vectors.settings

    def search(
        self,
        text: str | None = None,
        *,
        images: Sequence[StrPath] = (),
        like: Sequence[str] = (),
        without: Sequence[str] = (),
        k: int | None = None,
        include: Sequence[str] = (),
        min_score: float | None = None,
        exact: bool | None = None,
        rerank: int | None = None,
    ) -> list[Hit]:
        """Return the images that a query finds, the best first; see `Query` for `images`, `like` and `without`.

        `k` is the largest number of hits; None: 20, or all of a smaller index. `exact` computes the scores of all
        images, also in a large index, where a scan may miss some. `rerank` sorts the best again with the match head; of
        those, a hit whose image cannot be read any more has the `itm` None, and comes last. Raises UsageError,
        InputError for an image that does not exist, and ModelError.
        """
        for name, given in (("images", images), ("like", like), ("without", without), ("include", include)):
            if isinstance(given, (str, os.PathLike)):
                raise TypeError(f"{name}: expected a sequence, got one {type(given).__name__}: put it in a list.")
        query = Query(
            text=text, images=tuple(os.fspath(each) for each in images), like=tuple(like), without=tuple(without)
        )
        ((_, hits),) = self._searcher.search(
            [query], k=k, include=include, min_score=min_score, exact=exact, rerank=rerank
        )
        return hits

    def duplicates(self, min_score: float = 0.97) -> Iterator[list[Hit]]:
        """Yield groups of near-equal images, the group with the highest score first.

        Images are near-equal if the cosine of their mean vectors is at least `min_score`. Raises UsageError for a
        score that is not in (0, 1].
        """
        return self._vectors.duplicates(min_score)

    def write_sheet(
        self, path: StrPath, groups: Mapping[str, Sequence[Hit]], *, title: str = "", overwrite: bool = False
    ) -> SheetCounts:
        """Write hits as one HTML page, with a section for each group. Raises UsageError or OutputError."""
        check_target(os.fspath(path), flag="path", suffixes=HTML, overwrite=overwrite)
        refs = self._searcher.places.ref
        sections = (
            Section(heading=heading, cards=tuple(Card(ref=refs(hit), scores=f"{hit.score:.3f}") for hit in hits))
            for heading, hits in groups.items()
        )
        return write_sheet(os.fspath(path), sections, title=title or "Images", decode=self._decode, flag="path")
