"""Linear layers with 8-bit weights and 8-bit activations for a GPU, without an extra package: half the memory.

Weights have one scale for each output; activations have one for each row, computed in every call, so that a row does
not depend on its neighbours. Not covered: speed. Torch's own operations pass three times over the activations before a
product, and in int8 three times over its result, which costs what the product saves; one fused kernel would not.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from blip2cap.models.blip2.int8_linear import LARGEST, quantize_weight

_MIN_ROWS = 32
"""cuBLAS multiplies only int8 matrices of more than 16 rows."""
_FP8 = torch.float8_e4m3fn
_LARGEST_FP8 = torch.finfo(_FP8).max
FP8_UNIT = 16
"""Both sides of an fp8 matrix must be multiples of this."""


class GpuInt8Linear(nn.Module):
    """A Linear in int8."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.scale_O = quantize_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., out_features] for [..., in_features]."""
        x_NI = x.reshape(-1, x.shape[-1])
        scale_N1 = _scale_rows(x_NI, LARGEST)
        values_NI = x_NI.div(scale_N1).round_().to(torch.int8)
        num_rows = len(values_NI)
        if num_rows < _MIN_ROWS:
            values_NI = nn.functional.pad(values_NI, (0, 0, 0, _MIN_ROWS - num_rows))
        y_NO = torch._int_mm(values_NI, self.weight.t())[:num_rows] * self.scale_O
        y_NO = y_NO.mul_(scale_N1) if self.bias is None else torch.addcmul(self.bias, y_NO, scale_N1.float())
        return y_NO.to(x.dtype).view(*x.shape[:-1], -1)


class Fp8Linear(nn.Module):
    """A Linear in fp8, for activations in bfloat16; the product applies the scales and adds the bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI = linear.weight.detach()
        scale_O1 = _scale_rows(weight_OI.float(), _LARGEST_FP8)
        self.weight = weight_OI.float().div_(scale_O1).to(_FP8)
        self.scale_1O = scale_O1.t().contiguous()
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., out_features] for [..., in_features]."""
        x_NI = x.reshape(-1, x.shape[-1])
        # The scale is rounded to bfloat16 before it is used, so the product multiplies by exactly what was divided by.
        scale_N1 = _scale_rows(x_NI, _LARGEST_FP8)
        y_NO = torch._scaled_mm(
            x_NI.div(scale_N1).to(_FP8),
            self.weight.t(),
            scale_a=scale_N1.float(),
            scale_b=self.scale_1O,
            bias=self.bias,
            out_dtype=torch.bfloat16,
        )
        return y_NO.view(*x.shape[:-1], -1)


def _scale_rows(x_NI: torch.Tensor, largest: float) -> torch.Tensor:
    """Return the number to divide each row by, [N, 1] in the dtype of x: its largest value becomes `largest`.

    It is never 0, so a row of zeros stays zeros.
    """
    scale_N1: torch.Tensor = torch.linalg.vector_norm(x_NI, math.inf, dim=1, keepdim=True).div_(largest)
    return scale_N1.clamp_(min=torch.finfo(x_NI.dtype).tiny)
