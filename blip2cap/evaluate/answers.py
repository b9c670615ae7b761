"""Answers against references: accuracy as VQA computes it, exact match, closed sets of answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from blip2cap.evaluate import vqa
from blip2cap.evaluate.closed import Closed, make_closed
from blip2cap.evaluate.evaluation import Evaluation, Group, Item
from blip2cap.evaluate.metric import Floats, make_mean
from blip2cap.evaluate.pairs import Pair

ACCURACY, EXACT = "VQA accuracy", "exact match"
_MOST_QUESTIONS = 12
"""Most different questions that have tables of their own."""


def evaluate_answers(given: str, pairs: Sequence[Pair]) -> Evaluation:
    """Score one answer to each question."""
    own, wanted = [pair.own.texts[0] for pair in pairs], [pair.reference.texts for pair in pairs]
    right = np.array([float(vqa.is_right(*each)) for each in zip(own, wanted, strict=True)])
    metrics = [make_mean(EXACT, right)]
    notes = []
    least, most = min(map(len, wanted)), max(map(len, wanted))
    if least >= vqa.LEAST_ANSWERS:
        accuracies = np.array([vqa.accuracy(*each) for each in zip(own, wanted, strict=True)])
        metrics.insert(0, make_mean(ACCURACY, accuracies))
        if (least, most) != (vqa.OFFICIAL_ANSWERS, vqa.OFFICIAL_ANSWERS):
            count = f"{least}" if least == most else f"{least} to {most}"
            notes.append(f"{ACCURACY} is made for {vqa.OFFICIAL_ANSWERS} answers to each question; these have {count}")
    elif most > 1:
        notes.append(
            f"no {ACCURACY}: some questions have {least} reference answer{'s' if least > 1 else ''}, it needs "
            f"{vqa.OFFICIAL_ANSWERS}"
        )
    main = metrics[0]
    assert main.per_item is not None
    closed = tuple(_closed(pairs, right))
    metrics += [each.balanced_accuracy for each in closed]
    return Evaluation(
        given=given,
        noun="answer",
        items=tuple(
            Item(
                image=pair.image,
                question=pair.own.question or pair.reference.question or "",
                text=text,
                references=texts,
            )
            for pair, text, texts in zip(pairs, own, wanted, strict=True)
        ),
        metrics=tuple(metrics),
        score_name=main.name,
        item_scores=main.per_item,
        perfect=1.0,
        groups=(
            *_groups("answer type", main.name, main.per_item, [pair.reference.answer_type for pair in pairs]),
            *_groups("question type", main.name, main.per_item, [pair.reference.question_type for pair in pairs]),
        ),
        closed=closed,
        notes=tuple(notes),
    )


def _groups(kind: str, name: str, per_item: Floats, labels: Sequence[str]) -> Iterator[Group]:
    """Yield the metric for each label, the most frequent first, if there are several."""
    found = _indices(labels)
    if len(found) > 1:
        for label, indices in found.items():
            yield Group(kind=kind, name=label or "none given", metric=make_mean(name, per_item[indices]))


def _closed(pairs: Sequence[Pair], right: Floats) -> Iterator[Closed]:
    """Yield tables of closed sets: one for each question if they are few, else for each answer type, else for all.

    The smallest groups come first: in a table of several questions, one that is always answered alike would not show.
    """
    own = [vqa.normalise(pair.own.texts[0]) for pair in pairs]
    wanted = [vqa.consensus(pair.reference.texts) for pair in pairs]
    ways = (
        [pair.own.question or pair.reference.question or pair.reference.question_id for pair in pairs],
        [pair.reference.answer_type or _answer_type(answer) for pair, answer in zip(pairs, wanted, strict=True)],
        ["all"] * len(pairs),
    )
    for labels in ways:
        groups = _indices(labels)
        if len(groups) > _MOST_QUESTIONS:
            continue
        tables = [
            make_closed(
                label, [own[at] for at in indices], [wanted[at] for at in indices], right[indices], indices, len(pairs)
            )
            for label, indices in groups.items()
        ]
        found = [each for each in tables if each is not None]
        if found:
            yield from found
            return


def _answer_type(answer: str) -> str:
    """Return the type that VQA gives to an answer, for references that have none."""
    return "yes/no" if answer in ("yes", "no") else "other"


def _indices(labels: Sequence[str]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Return the positions of each label, the most frequent label first."""
    places: dict[str, list[int]] = {}
    for at, label in enumerate(labels):
        places.setdefault(label, []).append(at)
    return {label: np.array(found) for label, found in sorted(places.items(), key=lambda each: -len(each[1]))}
