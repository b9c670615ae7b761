"""Fuses and replaces the Linear layers of a network.

Fused: several projections of one input side by side in one matrix, one large product instead of three small ones. The
modules keep views of the large matrix, so nothing is stored twice and transformers' own forward stays correct.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from transformers.activations import GELUActivation

from blip2cap.models.device import has_onednn

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


_ROWS = 16
"""Number of rows to pack for. Measured with 16 and 2056: the layout and the time are the same."""


class PackedLinear(nn.Module):
    """A Linear in bfloat16 for inference, whose weight only oneDNN can read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation = ("none", "")
        """Activation function applied to the output: oneDNN's name of it, and its variant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., out_features] for [..., in_features]."""
        name, variant = self.activation
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], variant)
        return y


def pack(network: nn.Module) -> int:
    """Replace every plain bfloat16 Linear on the CPU by a packed one, and return the number of replaced layers.

    The lm_head of OPT, which shares its weight with the embedding, gets a copy; the embedding does not change.
    """
    if not can_pack():
        return 0

    def make(linear: nn.Linear) -> PackedLinear | None:
        weight = linear.weight
        return PackedLinear(linear) if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" else None

    num_packed = replace_linears(network, make)
    for module in network.modules():
        _fuse_activation(module)
    return num_packed


def _fuse_activation(mlp: nn.Module) -> None:
    """Move the activation function of a feed-forward block into its first Linear, which saves a pass over memory."""
    first, activation = getattr(mlp, "fc1", None), getattr(mlp, "activation_fn", None)
    if not isinstance(first, PackedLinear):
        return
    if isinstance(activation, nn.ReLU):
        first.activation = ("relu", "")
    elif isinstance(activation, GELUActivation) and activation.act is nn.functional.gelu:
        first.activation = ("gelu", "none")
    else:
        return
    mlp.activation_fn = nn.Identity()


def can_pack() -> bool:
    """Return True if this CPU and this torch have the kernels."""
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return (
        has_onednn()
        and all(hasattr(torch.ops.mkldnn, name) for name in names)
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
