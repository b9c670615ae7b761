"""Position embeddings of a vision encoder for images of another size."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def interpolate_positions(positions_1ND: Tensor, side: int) -> Tensor:
    """Return position embeddings for `side` x `side` patches, bicubic, as LAVIS makes them; the class token is kept.

    N = 1 + patches, D = hidden size. Computed in float32, whatever the dtype.
    """
    old_side = math.isqrt(positions_1ND.shape[1] - 1)
    if old_side == side:
        return positions_1ND
    class_11D, patches_1ND = positions_1ND[:, :1], positions_1ND[:, 1:]
    grid_1DPP = patches_1ND.float().transpose(1, 2).reshape(1, -1, old_side, old_side)
    grid_1DPP = torch.nn.functional.interpolate(grid_1DPP, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([class_11D, grid_1DPP.flatten(2).transpose(1, 2).to(positions_1ND.dtype)], dim=1)
