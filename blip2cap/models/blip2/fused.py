"""Several projections of one input laid side by side in one matrix: one large product instead of three small ones.

The modules keep views of the large matrix, so nothing is stored twice and transformers' own forward stays right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def fuse(parent: nn.Module, names: tuple[str, ...], fused_name: str) -> None:
    """Register the projections `names` of a module as one Linear; left alone if they are no plain Linear layers."""
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
    """Apply the projections, side by side in the last dimension, fused or not."""
    fused = getattr(parent, fused_name, None)
    if fused is not None:
        return fused(hidden)  # type: ignore[no-any-return]
    return torch.cat([getattr(parent, name)(hidden) for name in names], dim=-1)
