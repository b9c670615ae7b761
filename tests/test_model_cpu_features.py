"""The features that the processor reports decide the dtype."""

from __future__ import annotations

import pytest
import torch

from blip2cap.models import device


@pytest.mark.parametrize(
    ("capabilities", "bfloat16", "int8"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_bf16": False}, False, False),
        ({"avx512_bf16": True, "avx512_vnni": True}, True, True),
        ({"amx_bf16": True, "amx_int8": True}, True, True),
        ({"avx512_vnni": True}, False, True),
        ({"avx_vnni": True}, False, True),
        ({"architecture": "arm64", "bf16": True}, True, False),
        ({"architecture": "arm64", "bf16": False, "neon": True}, False, False),
        ({}, False, False),
    ],
)
def test_the_processor_is_asked(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], bfloat16: bool, int8: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(device, "has_onednn", lambda: True)
    assert device.is_fast_at_bfloat16() is bfloat16
    assert device.adds_int8_without_overflow() is int8


@pytest.mark.parametrize("answer", [True, False])
def test_an_older_torch_is_asked_in_its_own_way(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: answer)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: answer)
    monkeypatch.setattr(device, "has_onednn", lambda: True)
    assert device.is_fast_at_bfloat16() is answer
    assert device.adds_int8_without_overflow() is answer


def test_without_onednn_bfloat16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(device, "has_onednn", lambda: False)
    assert device.is_fast_at_bfloat16() is False
