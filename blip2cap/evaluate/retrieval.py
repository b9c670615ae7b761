"""Recall of an index: does a caption find its image, and an image its captions? By ITC, and ranked again by ITM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blip2cap.errors import UsageError
from blip2cap.evaluate.evaluation import Evaluation, Item
from blip2cap.evaluate.itm import score_pairs
from blip2cap.evaluate.metric import Floats, Integers, Metric, make_metric
from blip2cap.index.encoder import log_odds
from blip2cap.index.searcher import Searcher
from blip2cap.jobs.job import Listener
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef

CUTS = (1, 5, 10)
"""Recall is measured among this many of the best."""
_LEAST = -1.0
"""The least cosine."""
_NUM_IMAGES = 16
"""Images that are compared with all texts at once: of 25,000 texts, 50 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Images with their texts."""

    names: tuple[str, ...]
    """Names of the images in the index."""
    texts: tuple[str, ...]
    """All texts; one that several images have is there as often."""
    owners: Integers
    """Position of the image of each text, [texts]; ascending."""
    own: Any
    """bool [images, texts]: which texts are an image's own, also the same text of another image."""


def make_task(named: Sequence[tuple[str, Sequence[str]]]) -> Task:
    """Return the texts of images as a list."""
    owners = np.array([at for at, (_, texts) in enumerate(named) for _ in texts])
    texts = tuple(text for _, texts in named for text in texts)
    places = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    distinct = np.array([places[text] for text in texts])
    has = np.zeros((len(named), len(places)), bool)
    has[owners, distinct] = True
    return Task(names=tuple(name for name, _ in named), texts=texts, owners=owners, own=has[:, distinct])


def evaluate_retrieval(
    given: str,
    searcher: Searcher,
    task: Task,
    *,
    rerank: int | None,
    decode: DecodeOptions,
    listener: Listener,
) -> Evaluation:
    """Measure recall both ways. Holds a score for each pair of image and text: 4 bytes each.

    With `rerank`, the match head reads each text with its best `rerank` images, and each image with its best texts, and
    sorts those by its log-odds plus the cosine, as `search --rerank` does. An image that cannot be read is not among
    them. Raises UsageError.
    """
    if rerank is not None and rerank < min(CUTS[-1], len(task.names)):
        raise UsageError(
            f"--rerank {rerank}: must be {CUTS[-1]} or more, or recall@{CUTS[-1]} would be that of fewer images."
        )
    scores = similarities(searcher, task)
    metrics = recalls(scores, scores, task, suffix="")
    if rerank is not None:
        by_text, by_image = reranked(searcher, scores, task, rerank, decode, listener)
        metrics += recalls(by_text, by_image, task, suffix=", re-ranked")
    items = []
    starts = np.searchsorted(task.owners, np.arange(len(task.names) + 1))
    for at, name in enumerate(task.names):
        mine = task.own[at]
        first = int(scores[at].argmax())
        rank = 1 + int((scores[at][~mine] >= scores[at][mine].max()).sum())
        note = "" if mine[first] else f"its own caption comes as number {rank} of {len(task.texts)}"
        references = task.texts[starts[at] : starts[at + 1]]
        items.append(Item(image=name, text=task.texts[first], references=references, note=note))
    return Evaluation(
        given=given,
        noun="image",
        items=tuple(items),
        metrics=tuple(metrics),
        score_name="lead of the own caption in ITC",
        item_scores=_lead(scores, task.own),
        refs=tuple(_refs(searcher, task)),
    )


def _lead(scores: Floats, own: Any) -> Floats:
    """Return by how much the best own text of each image is ahead of the best other one."""
    best, other = (np.where(chosen, scores, _LEAST).max(axis=1) for chosen in (own, ~own))
    lead: Floats = best - other
    return lead


def similarities(searcher: Searcher, task: Task) -> Floats:
    """Return ITC of each image and text, float32 [images, texts]: the largest cosine of any row of the image."""
    texts = [*dict.fromkeys(task.texts)]
    vectors = searcher.encoder.embed_texts(texts)
    place = {text: at for at, text in enumerate(texts)}
    columns = np.array([place[text] for text in task.texts])
    scores: Any = np.empty((len(task.names), len(texts)), np.float32)
    for start in range(0, len(task.names), _NUM_IMAGES):
        rows = np.stack([searcher.index.vectors_of(name) for name in task.names[start : start + _NUM_IMAGES]])
        products = rows.reshape(-1, rows.shape[-1]) @ vectors.T
        scores[start : start + len(rows)] = products.reshape(*rows.shape[:2], -1).max(axis=1)
    chosen: Floats = scores[:, columns]
    return chosen


def recalls(by_text: Floats, by_image: Floats, task: Task, *, suffix: str) -> list[Metric]:
    """Return recall both ways, of scores [images, texts] by which images of a text, and texts of an image, are sorted.

    Equal scores come in random order: the share of the orders in which the right one is found counts, so a model that
    gives everything the same score has the recall of chance.
    """
    num_images = len(task.names)
    of_text = np.arange(len(task.texts))
    right = by_text[task.owners, of_text]
    above = (by_text > right).sum(axis=0)
    equal = (by_text == right).sum(axis=0) - 1
    num_texts = np.bincount(task.owners, minlength=num_images).astype(np.float64)
    metrics = []
    for cut in CUTS:
        found = np.bincount(task.owners, _share(cut, above, equal), minlength=num_images).astype(np.float64)
        metrics.append(_mean(f"text to image R@{cut}{suffix}", found, num_texts))
    own = task.own
    best = np.where(own, by_image, -np.inf).max(axis=1, keepdims=True)
    above = (by_image > best).sum(axis=1)
    equal = ((by_image == best) & ~own).sum(axis=1)
    every = np.ones(num_images)
    return [
        *metrics,
        *(_mean(f"image to text R@{cut}{suffix}", _share(cut, above, equal), every) for cut in CUTS),
    ]


def _share(cut: int, above: Integers, equal: Integers) -> Floats:
    """Return the share of orders in which the right one is among the first `cut`."""
    share: Floats = np.clip((cut - above) / (equal + 1), 0, 1)
    return share


def _mean(name: str, found: Floats, counts: Floats) -> Metric:
    """Return the share of texts or images that are found; the items are images, as texts of one go together."""
    statistics = np.stack([found, counts], axis=1)
    return make_metric(name, statistics, lambda sums: float(sums[0] / sums[1]), found / counts)


def reranked(
    searcher: Searcher, scores: Floats, task: Task, count: int, decode: DecodeOptions, listener: Listener
) -> tuple[Floats, Floats]:
    """Return the scores by which images of a text, and texts of an image, are sorted: -inf for all but the best."""
    for_text, for_image = (np.zeros(scores.shape, bool) for _ in range(2))
    for text, chosen in enumerate(_best(scores.T, count)):
        for_text[chosen, text] = True
    for image, chosen in enumerate(_best(scores, count)):
        for_image[image, chosen] = True
    wanted = [np.flatnonzero(each) for each in for_text | for_image]
    texts = [[*dict.fromkeys(task.texts[at] for at in some)] for some in wanted]
    pairs = zip(_refs(searcher, task), texts, strict=True)
    found = score_pairs(searcher.encoder.model, pairs, decode=decode, listener=listener)
    sums = np.full(scores.shape, -np.inf)
    for image, some in enumerate(wanted):
        itm = {text: next(found) for text in texts[image]}
        for at in some:
            score = itm[task.texts[at]]
            if score is not None:
                sums[image, at] = log_odds(score.itm) + scores[image, at]
    return np.where(for_text, sums, -np.inf), np.where(for_image, sums, -np.inf)


def _best(scores: Floats, count: int) -> Iterator[Integers]:
    """Yield the positions of the highest scores of each row."""
    for row in scores:
        yield np.argsort(-row, kind="stable")[:count]


def _refs(searcher: Searcher, task: Task) -> list[ImageRef]:
    return [searcher.ref_of(name) for name in task.names]
