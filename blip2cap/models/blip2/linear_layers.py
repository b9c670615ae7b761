"""Fuses and replaces the Linear layers of a network.

Fused: several projections of one input side by side in one matrix, one large product instead of three small ones. The
modules keep views of the large matrix, so nothing is stored twice and transformers' own forward stays correct.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

_FUSED = {"qkv": (("q_proj", "k_proj", "v_proj"), ("q", "k", "v")), "kv": (("k_proj", "v_proj"), ("k", "v"))}
"""Name of a fused Linear -> the possible names of its projections in the same module."""


def fuse(parent: nn.Module, names: tuple[str, ...], fused_name: str) -> None:
    """Register the projections `names` of a module as one Linear; do nothing if they are not plain Linear layers."""
    parts: list[Any] = [getattr(parent, name) for name in names]
    if not all(type(part) is nn.Linear for part in parts):
        return
    sizes = [part.out_features for part in parts]
    fused = nn.Linear(parts[0].in_features, sum(sizes), bias=parts[0].bias is not None, device="meta")
    for name in ("weight", "bias"):
        if getattr(fused, name) is None:
            continue
        whole = torch.cat([getattr(part, name).data for part in parts])
        setattr(fused, name, nn.Parameter(whole, requires_grad=False))
        for part, view in zip(parts, torch.split(whole, sizes), strict=True):
            setattr(part, name, nn.Parameter(view, requires_grad=False))
    parent.register_module(fused_name, fused)


def project(parent: Any, names: tuple[str, ...], fused_name: str, hidden: torch.Tensor) -> torch.Tensor:
    """Apply the projections and join their outputs in the last dimension, fused or not."""
    fused = getattr(parent, fused_name, None)
    if fused is not None:
        return fused(hidden)  # type: ignore[no-any-return]
    return torch.cat([getattr(parent, name)(hidden) for name in names], dim=-1)


class FusedPart(nn.Module):
    """One projection of a fused layer that was replaced: runs the fused layer and returns its own part of the output.

    It costs several times the work but stores no weight; only transformers' own forward calls it.
    """

    def __init__(self, fused: nn.Module, start: int, size: int) -> None:
        super().__init__()
        self._fused = (fused,)  # in a tuple, so that it is not a child: the parent module has it already
        self._start, self._size = start, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., size] for [..., D]."""
        y: torch.Tensor = self._fused[0](x)
        return y.narrow(-1, self._start, self._size)


def replace_linears(
    network: nn.Module, make: Callable[[nn.Linear], nn.Module | None], *, never: Collection[str] = ()
) -> int:
    """Replace each plain Linear by the result of `make`, one at a time, and return the number of replaced layers.

    `make` returns None to keep a layer. Layers with one of the names `never` in their path are skipped. A fused Linear
    is replaced as a whole, and its projections become parts of the new layer.
    """
    # Names, not layers: a list of layers would keep every old weight in memory until the end.
    parents = [
        (path, module)
        for path, module in network.named_modules()
        if not isinstance(module, nn.Linear) and not set(never).intersection(path.split("."))
    ]
    num_replaced = 0
    for _, parent in parents:
        names = [name for name, child in parent.named_children() if type(child) is nn.Linear and name not in never]
        fused = {name: _projections(parent, name) for name in names}
        for name in names:
            if any(name in projections for projections in fused.values()):
                continue
            new = make(getattr(parent, name))
            if new is None:
                continue
            setattr(parent, name, new)
            num_replaced += 1
            start = 0
            for projection in fused[name]:
                size = getattr(parent, projection).out_features
                setattr(parent, projection, FusedPart(new, start, size))
                start += size
    return num_replaced


def _projections(parent: nn.Module, name: str) -> tuple[str, ...]:
    """Return the names of the projections that are views of the Linear `name`; none for the vision encoder's qkv."""
    for names in _FUSED.get(name, ()):
        if all(type(getattr(parent, projection, None)) is nn.Linear for projection in names):
            return names
    return ()
