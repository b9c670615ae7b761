"""The fastest attention for a device.

On a CPU without AMX torch's fused attention has no bfloat16 product and is slow for a single query: two plain products
with a softmax between them are faster.

Shapes: N = rows, H = heads, T = queries, S = keys, K = size of a head.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

_DECODING = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def decoding_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Select the kernels for prefills and steps on a GPU: not cuDNN's, which plans each new shape for up to 0.4 s."""
    return nullcontext() if device.type == "cpu" else sdpa_kernel(_DECODING)


def attend(
    query_NHTK: torch.Tensor, key_NHSK: torch.Tensor, value_NHSK: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return [N, H, T, K]. Scores are not scaled; `mask` is added to them; None is a causal mask, with T = S.

    A mask of a step has 4 dimensions, with a query for each beam.
    """
    on_cpu = query_NHTK.device.type == "cpu"
    if not (on_cpu and (query_NHTK.dtype != torch.float32 or query_NHTK.shape[2] == 1)):
        return functional.scaled_dot_product_attention(
            query_NHTK, key_NHSK, value_NHSK, attn_mask=mask, is_causal=mask is None, scale=1.0
        )
    if mask is not None and mask.ndim == 4:
        # A step: reading the cache takes most of the time, and float32 products need no contiguous copy of it.
        scores_NHTS = torch.matmul(query_NHTK.float(), key_NHSK.float().transpose(-1, -2)) + mask
        return torch.matmul(scores_NHTS.softmax(-1), value_NHSK.float()).to(query_NHTK.dtype)
    if mask is None:
        length = query_NHTK.shape[2]
        mask = query_NHTK.new_full((length, length), float("-inf")).triu_(1)
    scores_NHTS = torch.matmul(query_NHTK, key_NHSK.transpose(-1, -2)) + mask
    return torch.matmul(scores_NHTS.softmax(-1), value_NHSK)


def choose_attention(network: Any) -> None:
    """Make transformers' vision encoder and Q-Former use plain products too, where they are faster."""
    weight = network.vision_model.embeddings.class_embedding
    if weight.device.type == "cpu" and weight.dtype != torch.float32:
        for part in (network.vision_model, network.qformer):
            part.set_attn_implementation("eager")
