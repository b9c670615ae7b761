"""Scores of pairs of images and texts by an image-text matching model; captions scored so need no reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from blip2cap.engine.run import Engine, RunStats
from blip2cap.errors import ImageError, InputError
from blip2cap.evaluate.evaluation import Evaluation, Item
from blip2cap.evaluate.metric import make_mean
from blip2cap.jobs.job import Listener
from blip2cap.models.base import dtype_name
from blip2cap.models.checkpoint import find
from blip2cap.models.registry import FAMILIES, load
from blip2cap.options import BatchOptions, DecodeOptions, ModelOptions
from blip2cap.records import ImageRef, MatchScore
from blip2cap.tasks.base import Request
from blip2cap.tasks.match import Match, not_finite

MATCHING = 0.5
"""Least probability of a text that the match head takes for one of the image."""


class _OwnTexts:
    """Each request has the texts of its image: nothing is looked up."""

    fingerprint = ""

    def of(self, ref: ImageRef) -> Sequence[str]:
        raise AssertionError("requests have their texts")

    def no_caption(self, example: str) -> str:
        raise AssertionError("requests have their texts")


class _Exact(Match):
    """Scores that are not rounded, as log-odds of nearly certain matches are compared."""

    def finish(self, result: MatchScore) -> MatchScore | ImageError:
        finite = math.isfinite(result.itm) and math.isfinite(result.itc)
        return MatchScore(itm=float(result.itm), itc=float(result.itc)) if finite else not_finite()


def load_model(options: ModelOptions, listener: Listener) -> Any:
    """Load a matching model. Raises ModelError, or UsageError for a model that cannot match."""
    checkpoint = find(options, say=listener.say, quiet=listener.quiet)
    FAMILIES[checkpoint.family].check_task("match", checkpoint)
    listener.say(f"loading {checkpoint.name} ...")
    model = load(checkpoint, options)
    listener.say(f"{checkpoint.name}: {dtype_name(model.dtype)} on {model.device}")
    return model


def score_pairs(
    model: Any, pairs: Iterable[tuple[ImageRef, Sequence[str]]], *, decode: DecodeOptions, listener: Listener
) -> Iterator[MatchScore | None]:
    """Yield the scores of each text of each image, in order; None for those that have none.

    Images are read ahead and encoded once; names of images must differ.
    """
    task = _Exact(captions=_OwnTexts())
    engine = Engine(model=model, task=task, decode=decode, batch=BatchOptions(), on_failure=listener.failure)
    stats = RunStats()
    requests = (Request(ref=ref, labels=tuple(texts)) for ref, texts in pairs if texts)
    with closing(engine.row_batches(engine.read_ahead(requests), stats)) as batches:
        for rows in batches:
            listener.progress(stats)
            for row in rows:
                yield MatchScore(itm=row["itm"], itc=row["itc"]) if row.status == "ok" else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Captioned:
    """One image with its caption."""

    ref: ImageRef
    item: Item


def evaluate_itm(
    given: str, captions: Sequence[Captioned], *, model: Any, decode: DecodeOptions, listener: Listener
) -> Evaluation:
    """Score captions by a matching model. Captions of images that fail are left out.

    Raises InputError if all fail.
    """
    pairs = ((each.ref, (each.item.text,)) for each in captions)
    scored = [*score_pairs(model, pairs, decode=decode, listener=listener)]
    ok = [(each, score) for each, score in zip(captions, scored, strict=True) if score is not None]
    if not ok:
        raise InputError(
            f"{given}: no image of its {len(captions)} captions can be read. Say where they are: --images."
        )
    itm = np.array([score.itm for _, score in ok])
    metrics = (
        make_mean("ITM", itm),
        make_mean(f"ITM of {MATCHING} or more", (itm >= MATCHING).astype(np.float64)),
        make_mean("ITC", np.array([score.itc for _, score in ok])),
    )
    return Evaluation(
        given=given,
        noun="caption",
        items=tuple(each.item for each, _ in ok),
        metrics=metrics,
        score_name="ITM",
        item_scores=itm,
        refs=tuple(each.ref for each, _ in ok),
    )
