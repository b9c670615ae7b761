"""Checks of data before a training: everything is read once, with the decoder of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from blip2cap.options import DecodeOptions
from blip2cap.train.data import check_images, check_texts
from blip2cap.train.data.collate import Collator, Stage1Collator
from blip2cap.train.data.example import Data, DataSet, Problem
from blip2cap.train.data.report import Report

IMAGE_SIZE = 224
"""Side of the square that images are decoded to where no model is given, in pixels; that of most models."""


def check(
    data: Data,
    decode: DecodeOptions,
    *,
    collate: Collator | Stage1Collator | None = None,
    progress: Callable[[int, int], None] = lambda num_images, num_failed: None,
) -> Report:
    """Read all images of some data, in threads, and check all texts.

    Lengths of texts are checked with the `collate` of the training. `progress` is called with the number of images so
    far, and of those that cannot be read.
    """
    sets = [data.train] if data.val is None else [data.train, data.val]
    size = IMAGE_SIZE if collate is None else collate.base.checkpoint.image_size
    images = check_images.read_images(sets, size, decode, progress)

    def problems(one: DataSet) -> Iterator[Problem]:
        yield from one.problems
        yield from check_images.bad_images(one, images)
        yield from check_texts.image_tokens(one)
        yield from check_texts.mismatched_ids(one)
        yield from check_texts.duplicates(one)
        yield from check_images.equal_images(one, images)
        if collate is not None:
            yield from check_texts.lengths(one, collate)

    train = [*problems(data.train), *check_texts.balance(data.train), *check_images.unreferenced(sets)]
    val = [] if data.val is None else [*problems(data.val), *check_images.overlap(data.train, data.val, images)]
    return Report(train=tuple(train), val=tuple(val), num_images=images.num)
