"""Searches an index by text and by image, and ranks the best again with the match head."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2cap.errors import ImageError, InputError, UsageError
from blip2cap.index.hits import Hit
from blip2cap.index.index import DEFAULT_K, Index
from blip2cap.index.places import Places
from blip2cap.index.query import Query
from blip2cap.options import DecodeOptions, ModelOptions
from blip2cap.records import ImageRef
from blip2cap.urls import scheme

if TYPE_CHECKING:
    from blip2cap.index.encoder import Encoder

Failure = Callable[[ImageRef, ImageError], None]


class Searcher:
    """An open index, and its model, which is loaded by the first search that needs it."""

    def __init__(
        self,
        index: Index,
        *,
        name: str | None = None,
        model: ModelOptions | None = None,
        decode: DecodeOptions | None = None,
        say: Callable[[str], None] = lambda line: None,
        encoder: Encoder | None = None,
    ) -> None:
        """Prepare; nothing is loaded. `name`, and dtype and device of `model`, are those of the model of the index."""
        self.index, self.places = index, Places(index.settings.get("image_column"))
        self._settings: dict[str, Any] = {"name": name, "options": model or ModelOptions()}
        self._settings |= {"decode": decode or DecodeOptions(), "say": say}
        self._encoder = encoder

    @property
    def encoder(self) -> Encoder:
        """The model of the index. Not imported before: a search by an image of the index needs no torch."""
        if self._encoder is None:
            from blip2cap.index.encoder import Encoder

            self._encoder = Encoder(settings=self.index.settings, **self._settings)
        return self._encoder

    def ref_of(self, file_name: str) -> ImageRef:
        """Return the image of a name in the index. Raises InputError if there is none."""
        return self.places.ref(self.index.hit_of(file_name))

    def search(
        self,
        queries: Sequence[Query],
        *,
        k: int | None = None,
        include: Sequence[str] = (),
        min_score: float | None = None,
        exact: bool | None = None,
        rerank: int | None = None,
        on_failure: Failure = lambda ref, error: None,
    ) -> Iterator[tuple[Query, list[Hit]]]:
        """Yield each query with its hits, the best first.

        Options as those of `Index.search`. With `rerank`, the match head reads the text together with each of the best
        `rerank` images, which are then sorted by the log-odds of its probability plus the cosine; the others follow. An
        image that cannot be read is reported, and comes after those that can, with its `itm` None. Raises UsageError
        for options that exclude each other, InputError for an image of a query that does not exist or cannot be read.
        """
        k = self._check(queries, k, rerank)
        only_texts = rerank is None and not any(query.images for query in queries)
        vectors = self._embed_texts(queries, only_texts=only_texts)
        for query in queries:
            # Images of the query itself are found first, and left out.
            num_wanted = min(max(k, rerank or 0) + len(query.like), self.index.num_images)
            negative = np.stack([vectors[text] for text in query.without]) if query.without else None
            hits = self.index.search(
                self._vectors(query, vectors),
                negative=negative,
                k=num_wanted,
                include=include,
                min_score=min_score,
                exact=exact,
            )
            hits = [hit for hit in hits if hit.file_name not in query.like]
            if rerank is not None and query.text is not None:
                hits = self._rerank(query.text, hits[:rerank], on_failure) + hits[rerank:]
            yield query, hits[:k]

    def _check(self, queries: Sequence[Query], k: int | None, rerank: int | None) -> int:
        num_images = self.index.num_images
        if not num_images:
            raise InputError("the index has no images. Add some: run `blip2cap index` with a folder.")
        for flag, value in (("-k", k), ("--rerank", rerank)):
            if value is not None and not 1 <= value <= num_images:
                raise UsageError(f"{flag} {value}: expected 1 to {num_images}, the number of images in the index.")
        for query in queries:
            if rerank is not None and (query.text is None or query.images or query.like or query.without):
                raise UsageError(
                    "--rerank reads one text together with each image; --image, --like and --not exclude it."
                )
            for path in query.images:
                if not scheme(path) and not os.path.isfile(path):
                    raise InputError(f"--image {path}: no such file. Expected an image file.")
        return min(DEFAULT_K, num_images) if k is None else k

    def _embed_texts(self, queries: Sequence[Query], *, only_texts: bool) -> dict[str, Any]:
        texts = [*dict.fromkeys(text for query in queries for text in query.texts)]
        if not texts:
            return {}
        return dict(zip(texts, self.encoder.embed_texts(texts, only_texts=only_texts), strict=True))

    def _vectors(self, query: Query, vectors: Mapping[str, Any]) -> Any:
        """Return the vectors to search with, float32 [R, 256]."""
        rows = [self.index.vectors_of(name) for name in query.like]
        if query.images:
            refs = [ImageRef(path=path, name=os.path.basename(path)) for path in query.images]
            for path, found in zip(query.images, self.encoder.embed_images(refs), strict=True):
                if isinstance(found, ImageError):
                    raise InputError(f"--image {path}: {found.code}: {found.detail}. Expected an image file.")
                rows.append(found)
        if query.text is None:
            return np.concatenate(rows)
        text = vectors[query.text][None]
        if not rows:
            return text
        both = np.concatenate(rows) + text
        return both / np.linalg.norm(both, axis=1, keepdims=True)

    def _rerank(self, text: str, hits: Sequence[Hit], on_failure: Failure) -> list[Hit]:
        from blip2cap.index.encoder import log_odds

        refs = [self.places.ref(hit) for hit in hits]
        matched, rest = [], []
        for hit, ref, found in zip(hits, refs, self.encoder.match(text, refs), strict=True):
            if isinstance(found, ImageError):
                on_failure(ref, found)
                rest.append(hit)
            else:
                matched.append(replace(hit, itm=found))
        matched.sort(key=lambda hit: -(log_odds(hit.itm or 0.0) + hit.score))
        return matched + rest
