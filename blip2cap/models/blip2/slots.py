"""The places in the cache that texts are decoded in: one slot a text, a row for each of its beams.

Slots in use come first: when a text ends, the last one moves into its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blip2cap.models.blip2.cache import Cache
from blip2cap.models.blip2.decoders import Decoder

_NUM_SIZES = 16
"""Steps have a multiple of so large a part of all slots: every number of rows is a graph of its own on a GPU, and code
of its own that oneDNN makes on a CPU."""
_ROUNDING = 8
"""A cache that turns out too short grows to a multiple of this: prompts with a file's name in them differ a little."""


class Slots:
    """A cache, and for each row the last token with its position."""

    def __init__(self, decoder: Decoder, num_beams: int, max_new_tokens: int, device: torch.device) -> None:
        self.decoder, self.num_beams, self.max_new_tokens = decoder, num_beams, max_new_tokens
        self.num_prefix = 0
        self.cache: Cache | None = None
        self.ids_N = torch.zeros(0, dtype=torch.long, device=device)
        self.positions_N = torch.zeros(0, dtype=torch.long, device=device)

    @property
    def num_slots(self) -> int:
        """How many texts there is room for now."""
        return 0 if self.cache is None else self.cache.num_rows // self.num_beams

    def round_up(self, num_pending: int) -> int:
        """Return how many slots a step of so many texts takes along; what the free ones compute is thrown away."""
        unit = max(1, self.num_slots // _NUM_SIZES)
        return min(-(-num_pending // unit) * unit, self.num_slots)

    def rows(self, first: int, end: int) -> slice:
        """Return the rows of the slots from `first` to `end`."""
        return slice(first * self.num_beams, end * self.num_beams)

    def reserve(self, num_used: int, num_wanted: int, num_prefix: int, most: int) -> Cache:
        """Make room for `num_wanted` slots, the first `num_used` of them taken, and for prefixes of `num_prefix`.

        Grows by doubling, up to `most` slots: a run of ten images allocates for ten. Raises what the device raises when
        it has no memory; then nothing has changed.
        """
        if self.cache is not None and self.num_slots >= num_wanted and self.num_prefix >= num_prefix:
            return self.cache
        if num_used == 0:
            self.clear()  # nothing to take over: the old one need not be there beside the new one
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
        """Let the cache go."""
        self.cache, self.num_prefix = None, 0
        self.decoder.forget()

    def free(self, first: int) -> None:
        """Leave the slots from `first` on in a state in which a step may take them along."""
        self.positions_N[self.rows(first, self.num_slots)] = 0

    def compact(self, num_used: int, ended: Sequence[int]) -> list[int]:
        """Free slots; return which old slot is now in each place."""
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
