"""Checks of texts: duplicates, ids, balance of answers, lengths."""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2.model import NETWORK_CLASSES
from blip2cap.train.data.collate import Collator, Stage1Collator
from blip2cap.train.data.example import DataSet, Example, Problem
from blip2cap.train.data.mix import num_drawn

IMAGE_TOKEN = "<image>"
BALANCE = 0.8
"""One answer with a larger share of the examples of an epoch is warned of."""
_AGREE = 0.8
"""Ids that agree with names for at least this share of the examples are meant to agree for all."""
_LAST_NUMBER = re.compile(r"(\d+)\D*$")


def duplicates(data: DataSet) -> Iterator[Problem]:
    """Yield examples that were there before."""
    first: dict[tuple[str, str | None, tuple[str, ...]], Example] = {}
    for example in data.examples:
        before = first.setdefault((example.path, example.question, example.texts), example)
        if before is not example:
            yield Problem(reason="duplicate", where=example.where, detail=f"{example.name}: the same as {before.where}")


def image_tokens(data: DataSet) -> Iterator[Problem]:
    """Yield examples with a text that names the placeholder of an image."""
    for index, example in enumerate(data.examples):
        for text in (example.question or "", *example.texts):
            if IMAGE_TOKEN in text:
                yield Problem(reason="image token", where=example.where, detail=text, example=index)
                break


def mismatched_ids(data: DataSet) -> Iterator[Problem]:
    """Yield examples whose image id disagrees with their image, where those of most others in the same set agree.

    Sets count images each in its own way, so ids are compared within --data and within each --mix. An id agrees with
    the number at the end of a name, and belongs to one image. Ids of Visual Genome and COCO differ for the same
    picture, and so do those of releases: texts are then those of other pictures.
    """
    start = 0
    for share in data.shares:
        yield from _mismatched(data, range(start, start + share.num_examples))
        start += share.num_examples


def _mismatched(data: DataSet, indices: range) -> Iterator[Problem]:
    given = [(index, each) for index in indices if (each := data.examples[index]).image_id]
    numbered = [(index, each, number) for index, each in given if (number := _number(each)) is not None]
    agree = [number == int(each.image_id or 0) for _, each, number in numbered]
    bad: dict[int, str] = {}
    if numbered and sum(agree) >= _AGREE * len(agree):
        for (index, each, _), agrees in zip(numbered, agree, strict=True):
            if not agrees:
                bad[index] = f"image_id {each.image_id} with {each.name}"
    names: dict[str, Counter[str]] = defaultdict(Counter)
    for _, each in given:
        names[each.image_id or ""][each.path] += 1
    usual = {image_id: paths.most_common(1)[0][0] for image_id, paths in names.items()}
    if sum(len(paths) == 1 for paths in names.values()) >= _AGREE * len(names):
        for index, each in given:
            if (other := usual[each.image_id or ""]) != each.path:
                bad.setdefault(index, f"image_id {each.image_id} is {os.path.basename(other)} and {each.name}")
    for index in sorted(bad):
        yield Problem(reason="mismatched ids", where=data.examples[index].where, detail=bad[index], example=index)


def _number(example: Example) -> int | None:
    """Return the number at the end of an image's name, if its id is a number too."""
    stem = os.path.splitext(os.path.basename(example.name))[0]
    found = _LAST_NUMBER.search(stem)
    return int(found[1]) if found and str(example.image_id).isdecimal() else None


def balance(data: DataSet) -> Iterator[Problem]:
    """Yield the answer that is that of nearly all questions of an epoch."""
    shares: dict[str, float] = defaultdict(float)
    start = 0
    for share in data.shares:
        examples = data.examples[start : start + share.num_examples]
        start += share.num_examples
        answers = Counter(each.most_common.lower() for each in examples if each.question is not None)
        for answer, count in answers.items():  # sets count as often as they are drawn
            shares[answer] += count / len(examples) * num_drawn(share, data.shares[0])
    if shares:
        answer = max(shares, key=shares.__getitem__)
        part = shares[answer] / sum(shares.values())
        if part > BALANCE:
            shown = f'"{answer}" is the answer of {100 * part:.0f} % of the questions'
            yield Problem(reason="answer balance", where="", detail=shown)


def lengths(data: DataSet, collate: Collator | Stage1Collator) -> Iterator[Problem]:
    """Yield examples whose texts are truncated, or do not fit the positions of the model."""
    limit = collate.max_tokens
    most, most_read = num_positions(collate.base.checkpoint)
    for index, example in enumerate(data.examples):
        sizes = [(collate.num_tokens(example.question, text), text) for text in example.texts]
        size, text = max(sizes, key=lambda each: each[0].target)
        num_tokens = size.given + min(size.target, limit)
        if num_tokens > most or size.instruction > most_read:
            excess = f"{num_tokens} tokens, the model has {most} positions"
            if size.instruction > most_read:
                excess = f"{size.instruction} tokens, the Q-Former has {most_read} positions"
            detail = f"{excess}: {example.question or text}"
            yield Problem(reason="too long", where=example.where, detail=detail, example=index)
        elif size.target > limit:
            detail = f"{size.target} tokens, {limit} are kept: {text}"
            yield Problem(reason="truncated text", where=example.where, detail=detail)


def num_positions(checkpoint: Checkpoint) -> tuple[float, float]:
    """Return the largest number of tokens of a text with its image, infinite for T5, and that of the Q-Former."""
    config: Any = NETWORK_CLASSES[checkpoint.family].config_class.from_dict(checkpoint.config)
    of_qformer = int(config.qformer_config.max_position_embeddings)
    if checkpoint.family == "matching":
        return of_qformer, of_qformer
    return math.inf if checkpoint.text_type == "t5" else int(config.text_config.max_position_embeddings), of_qformer
