"""Slots of the cache: one for each text that is decoded, with a row for each of its beams.

Slots in use come first: when a text ends, the last slot in use moves to the free one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blip2cap.models.blip2.cache import Cache
from blip2cap.models.blip2.decoders import Decoder

_NUM_SIZES = 16
"""Number of different step sizes: steps are rounded up to this fraction of all slots, since every number of rows needs
its own CUDA graph on a GPU and its own generated code in oneDNN on a CPU."""
_ROUNDING = 8
"""A cache that is too short grows to a multiple of this length: prompts that contain file names differ a little."""


class Slots:
    """A cache, and the last token of each row with its position."""

    def __init__(self, decoder: Decoder, num_beams: int, max_new_tokens: int, device: torch.device) -> None:
        self.decoder, self.num_beams, self.max_new_tokens = decoder, num_beams, max_new_tokens
        self.num_prefix = 0
        self.cache: Cache | None = None
        self.ids_N = torch.zeros(0, dtype=torch.long, device=device)
        self.positions_N = torch.zeros(0, dtype=torch.long, device=device)

    @property
    def num_slots(self) -> int:
        """Number of slots, used or free."""
        return 0 if self.cache is None else self.cache.num_rows // self.num_beams

    def round_up(self, num_pending: int) -> int:
        """Return the number of slots in a step of `num_pending` texts; the results of free slots are not used."""
        unit = max(1, self.num_slots // _NUM_SIZES)
        return min(-(-num_pending // unit) * unit, self.num_slots)

    def rows(self, first: int, end: int) -> slice:
        """Return the rows of the slots from `first` to `end`."""
        return slice(first * self.num_beams, end * self.num_beams)

    def reserve(self, num_used: int, num_wanted: int, num_prefix: int, most: int) -> Cache:
        """Allocate `num_wanted` slots or more for prefixes of `num_prefix` tokens; keep the first `num_used` slots.

        The cache doubles, up to `most` slots, so that a run of ten images allocates for ten. If memory runs out, the
        error of the device is raised and nothing has changed.
        """
        if self.cache is not None and self.num_slots >= num_wanted and self.num_prefix >= num_prefix:
            return self.cache
        if num_used == 0:
            self.clear()  # nothing to copy: release the old cache before allocating the new one
        old, num_slots = self.cache, self.num_slots
        if num_wanted > num_slots:
            num_slots = max(num_wanted, min(2 * num_slots, most))
        if old is not None and num_prefix > self.num_prefix:
            num_prefix = -(-num_prefix // _ROUNDING) * _ROUNDING
        num_prefix = max(num_prefix, self.num_prefix)
        cache = self.decoder.new_cache(num_slots * self.num_beams, num_prefix, self.max_new_tokens)
        ids_N, positions_N = self.ids_N.new_zeros(cache.num_rows), self.positions_N.new_zeros(cache.num_rows)
        if old is not None:
            used = self.rows(0, num_used)
            cache.copy_rows(old, used, used)
            ids_N[used], positions_N[used] = self.ids_N[used], self.positions_N[used]
        self.cache, self.num_prefix, self.ids_N, self.positions_N = cache, num_prefix, ids_N, positions_N
        return cache

    def clear(self) -> None:
        """Release the cache."""
        self.cache, self.num_prefix = None, 0
        self.decoder.forget()

    def free(self, first: int) -> None:
        """Mark the slots from `first` on as free; a step may still run them."""
        self.positions_N[self.rows(first, self.num_slots)] = 0

    def compact(self, num_used: int, ended: Sequence[int]) -> list[int]:
        """Free the slots of ended texts; return the old number of each slot still in use."""
        assert self.cache is not None
        order = list(range(num_used))
        for slot in sorted(ended, reverse=True):
            last = order.pop()
            if slot == len(order):
                continue
            order[slot] = last
            source, to = self.rows(last, last + 1), self.rows(slot, slot + 1)
            self.cache.copy_rows(self.cache, source, to)
            self.ids_N[to], self.positions_N[to] = self.ids_N[source].clone(), self.positions_N[source].clone()
        self.free(len(order))
        return order
