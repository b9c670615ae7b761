"""The order of examples in an epoch: a function of seed and epoch alone, so that any step can be found again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from blip2cap.train.data.example import Share

Indices = npt.NDArray[np.int64]


def epoch_length(shares: Sequence[Share]) -> int:
    """Return the number of examples in an epoch, which is the same in all."""
    return sum(num_drawn(share, shares[0]) for share in shares)


def epoch_order(shares: Sequence[Share], *, seed: int, epoch: int) -> Indices:
    """Return indices of the examples of an epoch, shuffled.

    Every example of the first share is in it once. Of each other share as many are as its weight says; its epochs
    follow one another in an order that has each of its examples once before any comes again.
    """
    drawn, start = [], 0
    for number, share in enumerate(shares):
        length = num_drawn(share, shares[0])
        drawn.append(start + _cycle(share.num_examples, epoch * length, length, seed=(seed, number)))
        start += share.num_examples
    order = np.concatenate(drawn)
    np.random.default_rng((seed, len(shares), epoch)).shuffle(order)
    return order


def num_drawn(share: Share, first: Share) -> int:
    """Return the number of examples of a share in an epoch; `first` is that of --data."""
    if share is first:
        return share.num_examples
    return round(share.weight * first.num_examples) if share.num_examples else 0


def _cycle(size: int, start: int, length: int, *, seed: tuple[int, int]) -> Indices:
    """Return a part of an endless sequence of permutations of `range(size)`."""
    if not length:
        return np.empty(0, np.int64)
    rounds = range(start // size, (start + length - 1) // size + 1)
    numbers = np.concatenate([np.random.default_rng((*seed, number, 1)).permutation(size) for number in rounds])
    skipped = start - rounds.start * size
    return numbers[skipped : skipped + length].astype(np.int64)
