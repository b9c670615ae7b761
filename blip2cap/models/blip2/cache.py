"""Keys and values of the rows that are being decoded: allocated once, written in place; and the slots of the cache.

Each text has a slot, with a row for each of its beams. Slots in use come first: when a text ends, the last slot in use
moves to the free one.

Shapes: L = layers, R = rows, H = heads, S = positions, P = positions of an encoder's output, K = size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from blip2cap.models.blip2.decoders import Decoder


@dataclass(kw_only=True, slots=True)
class Cache:
    """Keys and values of each row; rows in use come first."""

    own_L2RHSK: torch.Tensor
    """Keys and values of the row's own tokens."""
    cross_L2RHPK: torch.Tensor | None = None
    """Keys and values of the encoder's output; None for models without an encoder."""
    cross_lengths_R: torch.Tensor | None = None
    """Number of the P positions that each row uses."""
    bias_HSS: torch.Tensor | None = None
    """T5's position bias, added to the score of each query and key."""

    @classmethod
    def allocate(
        cls,
        like: torch.Tensor,
        *,
        num_layers: int,
        num_rows: int,
        num_heads: int,
        head_size: int,
        length: int,
        cross_length: int = 0,
    ) -> Cache:
        """Allocate for `num_rows`, in the dtype and on the device of `like`.

        Filled with zeros: masked positions have weight 0, but 0 x NaN would be NaN.
        """

        def zeros(num_positions: int) -> torch.Tensor:
            return like.new_zeros((num_layers, 2, num_rows, num_heads, num_positions, head_size))

        if not cross_length:
            return cls(own_L2RHSK=zeros(length))
        lengths = torch.zeros(num_rows, dtype=torch.long, device=like.device)
        return cls(own_L2RHSK=zeros(length), cross_L2RHPK=zeros(cross_length), cross_lengths_R=lengths)

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        cross = 0 if self.cross_L2RHPK is None else self.cross_L2RHPK.nbytes
        return self.own_L2RHSK.nbytes + cross

    @property
    def num_rows(self) -> int:
        """Number of rows, used or free."""
        return self.own_L2RHSK.shape[2]

    @property
    def length(self) -> int:
        """Number of positions of a row."""
        return self.own_L2RHSK.shape[4]

    @property
    def cross_length(self) -> int:
        """Number of positions of a row for the encoder's output."""
        return 0 if self.cross_L2RHPK is None else self.cross_L2RHPK.shape[4]

    def write(self, layer: int, rows: slice, key_NHTK: torch.Tensor, value_NHTK: torch.Tensor, num_beams: int) -> None:
        """Write the keys and values of N prefixes, each `num_beams` times, and clear the rest of the rows."""
        if num_beams > 1:
            key_NHTK = key_NHTK.repeat_interleave(num_beams, dim=0)
            value_NHTK = value_NHTK.repeat_interleave(num_beams, dim=0)
        length = key_NHTK.shape[2]
        self.own_L2RHSK[layer, 0, rows, :, :length] = key_NHTK
        self.own_L2RHSK[layer, 1, rows, :, :length] = value_NHTK
        self.own_L2RHSK[layer, :, rows, :, length:] = 0

    def copy_rows(self, source: Cache, rows: slice, to: slice) -> None:
        """Copy whole rows from this cache or a smaller one."""
        self.own_L2RHSK[:, :, to, :, : source.length] = source.own_L2RHSK[:, :, rows]
        if self.cross_L2RHPK is not None:
            assert source.cross_L2RHPK is not None
            assert source.cross_lengths_R is not None
            assert self.cross_lengths_R is not None
            self.cross_L2RHPK[:, :, to, :, : source.cross_length] = source.cross_L2RHPK[:, :, rows]
            self.cross_lengths_R[to] = source.cross_lengths_R[rows]

    def reorder(self, rows_N: torch.Tensor, begin: int, end: int) -> None:
        """Replace positions begin..end of row i by those of row `rows_N[i]`, another beam of the same text.

        All beams of a text share the positions before `begin`.
        """
        own = self.own_L2RHSK[:, :, : len(rows_N), :, begin:end]
        own.copy_(own.index_select(2, rows_N))


class CacheAllocator:
    """Allocates caches for a decoder; the decoder defines their shape in `_allocate`."""

    def __init__(self, like: torch.Tensor) -> None:
        self._like = like
        """A tensor with the dtype and the device of the caches."""

    def new_cache(self, num_rows: int, num_prefix: int, max_new_tokens: int) -> Cache:
        """Allocate a cache for prefixes of at most `num_prefix` tokens."""
        return self._allocate(self._like, num_rows, num_prefix, max_new_tokens)

    def bytes_per_row(self, num_prefix: int, max_new_tokens: int) -> int:
        """Return the memory that a row of such a cache takes."""
        nothing = torch.empty(0, dtype=self._like.dtype, device="meta")
        return self._allocate(nothing, 1, num_prefix, max_new_tokens).num_bytes

    def forget(self) -> None:
        """Release the last cache; nothing is kept here."""

    def _allocate(self, like: torch.Tensor, num_rows: int, num_prefix: int, max_new_tokens: int) -> Cache:
        raise NotImplementedError


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
