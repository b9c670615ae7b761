"""Keys and values of the rows that are being decoded: allocated once, written in place; and the slots of the cache.

Each text has a slot, which is a row of the cache. All beams of a text share its row: its prefix is there once, and each
new token of each beam has an index of its own, of which a beam sees those of its ancestors. Slots in use come first:
when texts end, the last slots in use move to the free ones.

Shapes: L = layers, R = rows, B = beams of a row, H = heads, S = indices, P = positions of an encoder's output, K = size
of a head, M = rows of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from blip2cap.models.blip2.transfer import to_device

if TYPE_CHECKING:
    from blip2cap.models.blip2.decoders import Decoder

_ALIGNMENT = 8
"""Lengths are multiples of it: fused attention copies masks of other lengths in every layer."""


@dataclass(kw_only=True, slots=True)
class Cache:
    """Keys and values of each row; rows in use come first."""

    own_L2RHSK: torch.Tensor
    """Keys and values of the row's own tokens."""
    seen_RBS: torch.Tensor
    """True for each key that a beam sees."""
    num_given_R: torch.Tensor
    """Number of indices of each row before its first new token."""
    cross_L2RHPK: torch.Tensor | None = None
    """Keys and values of the encoder's output; None for models without an encoder."""
    cross_lengths_R: torch.Tensor | None = None
    """Number of the P positions that each row uses."""
    bias_HTS: torch.Tensor | None = None
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
        num_beams: int = 1,
    ) -> Cache:
        """Allocate for `num_rows`, in the dtype and on the device of `like`.

        Filled with zeros: masked positions have weight 0, but 0 x NaN would be NaN.
        """

        def zeros(num_positions: int) -> torch.Tensor:
            num_positions = -(-num_positions // _ALIGNMENT) * _ALIGNMENT
            return like.new_zeros((num_layers, 2, num_rows, num_heads, num_positions, head_size))

        own = zeros(length)
        numbers_R = torch.zeros(num_rows, dtype=torch.long, device=like.device)
        return cls(
            own_L2RHSK=own,
            seen_RBS=torch.zeros((num_rows, num_beams, own.shape[4]), dtype=torch.bool, device=like.device),
            num_given_R=numbers_R,
            cross_L2RHPK=zeros(cross_length) if cross_length else None,
            cross_lengths_R=numbers_R.clone() if cross_length else None,
        )

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
    def num_beams(self) -> int:
        """Number of beams of each row."""
        return self.seen_RBS.shape[1]

    @property
    def length(self) -> int:
        """Number of indices of a row."""
        return self.own_L2RHSK.shape[4]

    @property
    def cross_length(self) -> int:
        """Number of positions of a row for the encoder's output."""
        return 0 if self.cross_L2RHPK is None else self.cross_L2RHPK.shape[4]

    def start(self, rows: slice, num_given: int) -> None:
        """Let all beams of these rows see the first `num_given` indices, and nothing else."""
        self.num_given_R[rows] = num_given
        self.seen_RBS[rows, :, :num_given] = True
        self.seen_RBS[rows, :, num_given:] = False

    def write(self, layer: int, rows: slice, key_NHTK: torch.Tensor, value_NHTK: torch.Tensor) -> None:
        """Write the keys and values of N prefixes, and clear the rest of the rows."""
        length = key_NHTK.shape[2]
        self.own_L2RHSK[layer, 0, rows, :, :length] = key_NHTK
        self.own_L2RHSK[layer, 1, rows, :, :length] = value_NHTK
        self.own_L2RHSK[layer, :, rows, :, length:] = 0

    def next_indices(self, positions_M: torch.Tensor) -> torch.Tensor:
        """Return the index of the token that each beam of the first rows runs next, [M, B]; the beam will see it."""
        num_beams = self.num_beams
        indices_MB = positions_M.unsqueeze(1)
        if num_beams > 1:
            given_M1 = self.num_given_R[: len(positions_M)].unsqueeze(1)
            beams_B = torch.arange(num_beams, device=positions_M.device)
            indices_MB = given_M1 + (indices_MB - given_M1) * num_beams + beams_B
        self.seen_RBS[: len(positions_M)].scatter_(2, indices_MB.unsqueeze(2), True)
        return indices_MB

    def mask(self, num_rows: int, length: int) -> torch.Tensor:
        """Return what is added to the scores of the first `length` keys of the first rows, [M, 1, B, S]."""
        seen_MBS = self.seen_RBS[:num_rows, :, :length]
        mask_MBS = torch.zeros_like(seen_MBS, dtype=self.own_L2RHSK.dtype).masked_fill_(~seen_MBS, float("-inf"))
        return mask_MBS.unsqueeze(1)

    def reorder(self, parents_MB: torch.Tensor) -> None:
        """Let each beam of the first rows see what its parent, another beam of the same row, has seen."""
        seen_MBS = self.seen_RBS[: len(parents_MB)]
        seen_MBS.copy_(seen_MBS.gather(1, parents_MB.unsqueeze(2).expand(-1, -1, self.length)))

    def copy_rows(self, source: Cache, num_rows: int) -> None:
        """Copy the first rows of a smaller cache."""
        self.own_L2RHSK[:, :, :num_rows, :, : source.length] = source.own_L2RHSK[:, :, :num_rows]
        self.seen_RBS[:num_rows, :, : source.length] = source.seen_RBS[:num_rows]
        self.num_given_R[:num_rows] = source.num_given_R[:num_rows]
        if self.cross_L2RHPK is not None:
            assert source.cross_L2RHPK is not None
            assert source.cross_lengths_R is not None
            assert self.cross_lengths_R is not None
            self.cross_L2RHPK[:, :, :num_rows, :, : source.cross_length] = source.cross_L2RHPK[:, :, :num_rows]
            self.cross_lengths_R[:num_rows] = source.cross_lengths_R[:num_rows]

    def move_rows(self, sources_N: torch.Tensor, targets_N: torch.Tensor) -> None:
        """Copy rows of this cache to other rows, which are not among the sources."""
        for values, dim in ((self.own_L2RHSK, 2), (self.cross_L2RHPK, 2)):
            if values is not None:
                values.index_copy_(dim, targets_N, values.index_select(dim, sources_N))
        for values in (self.seen_RBS, self.num_given_R, self.cross_lengths_R):
            if values is not None:
                values[targets_N] = values[sources_N]


class CacheAllocator:
    """Allocates caches for a decoder; the decoder defines their shape in `_allocate`."""

    def __init__(self, like: torch.Tensor) -> None:
        self._like = like
        """A tensor with the dtype and the device of the caches."""

    def new_cache(self, num_rows: int, num_prefix: int, max_new_tokens: int, num_beams: int = 1) -> Cache:
        """Allocate a cache for prefixes of at most `num_prefix` tokens."""
        return self._allocate(self._like, num_rows, num_prefix, max_new_tokens, num_beams)

    def bytes_per_row(self, num_prefix: int, max_new_tokens: int, num_beams: int = 1) -> int:
        """Return the memory that a row of such a cache takes."""
        nothing = torch.empty(0, dtype=self._like.dtype, device="meta")
        return self._allocate(nothing, 1, num_prefix, max_new_tokens, num_beams).num_bytes

    def step_sizes(self, num_rows: int) -> Sequence[int]:
        """Return the numbers of rows of a step: multiples of a sixteenth, as oneDNN generates code for each number."""
        unit = max(1, num_rows // _NUM_SIZES)
        return [*range(unit, num_rows, unit), num_rows]

    def forget(self) -> None:
        """Release the last cache; nothing is kept here."""

    def _allocate(
        self, like: torch.Tensor, num_rows: int, num_prefix: int, max_new_tokens: int, num_beams: int
    ) -> Cache:
        raise NotImplementedError


_NUM_SIZES = 16
_ROUNDING = 8
"""A cache that is too short grows to a multiple of this length: prompts that contain file names differ a little."""
_MOST_MOVED = 32
"""Most slots moved at once: their copy needs memory."""


class Slots:
    """A cache, and the last token of each row with its position."""

    def __init__(
        self, decoder: Decoder, num_beams: int, max_new_tokens: int, device: torch.device, *, few_sizes: bool = False
    ) -> None:
        self.decoder, self.num_beams, self.max_new_tokens = decoder, num_beams, max_new_tokens
        self.few_sizes = few_sizes
        """Allocate for the largest number of texts at once: on a GPU every new size costs time."""
        self.num_prefix = 0
        self.cache: Cache | None = None
        self.ids_RB = torch.zeros((0, num_beams), dtype=torch.long, device=device)
        self.positions_R = torch.zeros(0, dtype=torch.long, device=device)

    @property
    def num_slots(self) -> int:
        """Number of slots, used or free."""
        return 0 if self.cache is None else self.cache.num_rows

    def round_up(self, num_pending: int) -> int:
        """Return the number of slots in a step of `num_pending` texts; the results of free slots are not used."""
        return next(size for size in self.decoder.step_sizes(self.num_slots) if size >= num_pending)

    def reserve(self, num_used: int, num_wanted: int, num_prefix: int, most: int) -> Cache:
        """Allocate `num_wanted` slots or more for prefixes of `num_prefix` tokens; keep the first `num_used` slots.

        Without `few_sizes` it doubles, up to `most` slots, so that a run of ten images allocates for ten. If memory
        runs out, the error of the device is raised and nothing has changed.
        """
        if self.cache is not None and self.num_slots >= num_wanted and self.num_prefix >= num_prefix:
            return self.cache
        if num_used == 0:
            self.clear()  # nothing to copy: release the old cache before allocating the new one
        old, num_slots = self.cache, self.num_slots
        if num_wanted > num_slots:
            num_slots = max(num_wanted, most if self.few_sizes else min(2 * num_slots, most))
        if old is not None and num_prefix > self.num_prefix:
            num_prefix = -(-num_prefix // _ROUNDING) * _ROUNDING
        num_prefix = max(num_prefix, self.num_prefix)
        # The cache last: its decoder replaces the graphs of the old one, which nothing may fail after.
        ids_RB, positions_R = self.ids_RB.new_zeros((num_slots, self.num_beams)), self.positions_R.new_zeros(num_slots)
        cache = self.decoder.new_cache(num_slots, num_prefix, self.max_new_tokens, self.num_beams)
        if old is not None:
            cache.copy_rows(old, num_used)
            ids_RB[:num_used], positions_R[:num_used] = self.ids_RB[:num_used], self.positions_R[:num_used]
        self.cache, self.num_prefix, self.ids_RB, self.positions_R = cache, num_prefix, ids_RB, positions_R
        return cache

    def clear(self) -> None:
        """Release the cache."""
        self.cache, self.num_prefix = None, 0
        self.decoder.forget()

    def free(self, first: int) -> None:
        """Mark the slots from `first` on as free; a step may still run them."""
        self.positions_R[first:] = 0
        if self.cache is not None:
            self.cache.num_given_R[first:] = 0

    def compact(self, num_used: int, ended: Sequence[int]) -> list[int]:
        """Free the slots of ended texts; return the old number of each slot still in use."""
        assert self.cache is not None
        order = list(range(num_used))
        for slot in sorted(ended, reverse=True):
            last = order.pop()
            if slot < len(order):
                order[slot] = last
        moves = [(source, target) for target, source in enumerate(order) if source != target]
        if moves:
            sources_N, targets_N = to_device(moves, self.positions_R.device).unbind(1)
            for at in range(0, len(moves), _MOST_MOVED):
                self.cache.move_rows(sources_N[at : at + _MOST_MOVED], targets_N[at : at + _MOST_MOVED])
            self.ids_RB[targets_N], self.positions_R[targets_N] = self.ids_RB[sources_N], self.positions_R[sources_N]
        self.free(len(order))
        return order
