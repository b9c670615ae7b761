"""Attention over a cache."""

from __future__ import annotations

import pytest
import torch

from blip2cap.models.blip2.attention import attend


@pytest.mark.parametrize("num_queries", [1, 5], ids=["a text", "beams"])
def test_a_step_in_bfloat16_adds_up_in_float32(num_queries: int) -> None:
    torch.manual_seed(0)
    query, keys, values = (torch.randn(3, 2, size, 80, dtype=torch.bfloat16) for size in (num_queries, 64, 64))
    mask = torch.zeros(3, 1, num_queries, 64, dtype=torch.bfloat16)
    mask[..., 50:] = float("-inf")
    scores = query.double() @ keys.double().transpose(-1, -2) + mask.double()
    exact = scores.softmax(-1) @ values.double()
    assert (attend(query, keys, values, mask).double() - exact).abs().max() < 0.012
