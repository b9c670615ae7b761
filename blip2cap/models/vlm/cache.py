"""Keys and values in tensors with spare capacity; the layers of transformers copy all of them for every new token.

Shapes: N, M = rows, H = heads, T = tokens, D = size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

_ROOM = 64
"""Number of tokens that fit before a tensor is copied to a larger one."""


class RoomyLayer(DynamicLayer):
    """Keys and values [N, H, T, D] of a layer of full attention, as views of tensors that have room."""

    _rooms: tuple[torch.Tensor, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens; return keys and values of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        num_old, num_new = self.get_seq_length(), key_states.shape[-2]
        if not self._rooms or num_old + num_new > self._rooms[0].shape[-2]:
            old = (self.keys, self.values) if num_old else (key_states[:, :, :0], value_states[:, :, :0])
            self._rooms = tuple(_stack([each], num_new) for each in old)
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, num_old : num_old + num_new] = states
        self._show(num_old + num_new)
        return self.keys, self.values

    def select(self, rows_M: torch.Tensor, first: int) -> None:
        """Keep these rows, in this order, and of them the tokens from `first` on."""
        rows_M = rows_M.to(self.keys.device)
        self._hold([self.keys[rows_M, :, first:]], [self.values[rows_M, :, first:]])

    def join(self, other: RoomyLayer) -> None:
        """Add the rows of another layer; those with fewer tokens are padded before their first."""
        self._hold([self.keys, other.keys], [self.values, other.values])

    def _hold(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        self._rooms = _stack(keys, 0), _stack(values, 0)
        self._show(max(part.shape[-2] for part in keys))

    def _show(self, num_tokens: int) -> None:
        self.keys, self.values = (room[:, :, :num_tokens] for room in self._rooms)


def _stack(parts: Sequence[torch.Tensor], num_new: int) -> torch.Tensor:
    """Return a tensor with the rows of all parts, which end at the same token, and room after it."""
    length = max(part.shape[-2] for part in parts)
    num_rows, (_, num_heads, _, size) = sum(map(len, parts)), parts[0].shape
    room = parts[0].new_empty((num_rows, num_heads, length + num_new + _ROOM, size))
    at = 0
    for part in parts:
        rows = room[at : at + len(part)]
        padding = length - part.shape[-2]
        rows[:, :, :padding] = 0  # not what the memory held: attention of weight 0 to a NaN is a NaN
        rows[:, :, padding:length] = part
        at += len(part)
    return room


def new_cache() -> Cache:
    """Return an empty cache of such layers."""
    return Cache(layer_class_to_replicate=RoomyLayer)
