"""Walks the Linear layers of a network and puts others in their place, one at a time: old weights go at once."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import nn

_FUSED = {"qkv": (("q_proj", "k_proj", "v_proj"), ("q", "k", "v")), "kv": (("k_proj", "v_proj"), ("k", "v"))}
"""The name of a Linear that holds several projections, and the names that these have beside it."""


class Part(nn.Module):
    """One of several projections that were laid side by side: runs the whole, and takes its part.

    Several times the work, but no weight of its own; only transformers' own forward asks for it.
    """

    def __init__(self, whole: nn.Module, start: int, size: int) -> None:
        super().__init__()
        self._whole = (whole,)  # in a tuple: it is no child, the parent has it already
        self._start, self._size = start, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., size] for [..., D]."""
        whole: torch.Tensor = self._whole[0](x)
        return whole.narrow(-1, self._start, self._size)


def replace_linears(
    network: nn.Module, make: Callable[[nn.Linear], nn.Module | None], *, never: Collection[str] = ()
) -> int:
    """Replace each plain Linear by what `make` returns for it, and return how many; None leaves it as it is.

    Left out is whatever has one of the names `never` in its path. Where projections were fused, the whole is
    replaced, and they become parts of it.
    """
    # Names, not layers: a list of layers would keep every old weight until the end.
    parents = [
        (path, module)
        for path, module in network.named_modules()
        if not isinstance(module, nn.Linear) and not set(never).intersection(path.split("."))
    ]
    num_replaced = 0
    for _, parent in parents:
        names = [name for name, child in parent.named_children() if type(child) is nn.Linear and name not in never]
        fused = {name: _parts(parent, name) for name in names}
        for name in names:
            if any(name in parts for parts in fused.values()):
                continue
            new = make(getattr(parent, name))
            if new is None:
                continue
            setattr(parent, name, new)
            num_replaced += 1
            start = 0
            for part in fused[name]:
                size = getattr(parent, part).out_features
                setattr(parent, part, Part(new, start, size))
                start += size
    return num_replaced


def _parts(parent: nn.Module, name: str) -> tuple[str, ...]:
    """Return the names of the projections that lie in the Linear `name`; the vision tower's own has none."""
    for names in _FUSED.get(name, ()):
        if all(type(getattr(parent, part, None)) is nn.Linear for part in names):
            return names
    return ()
