"""Keys and values of the rows that are being decoded: allocated once, written in place.

Shapes: L = layers, R = rows, H = heads, S = positions, P = positions of an encoder's output, K = size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
