"""Instructions of this machine's processor that decide how a model computes on it."""

from __future__ import annotations

import torch

_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""On x86; the last one on Arm."""
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")


def has_onednn() -> bool:
    """Return True if this torch has oneDNN, whose kernels use these instructions."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def is_fast_at_bfloat16() -> bool:
    """Return True if the processor multiplies bfloat16 itself; else bfloat16 is slower than float32."""
    if not has_onednn():
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch, which does not know about Arm
        return bool(torch.cpu._is_avx512_bf16_supported())
    return _has(_BFLOAT16)


def adds_int8_without_overflow() -> bool:
    """Return True if products of 8-bit numbers are added in 32 bits; older processors add pairs of them in 16."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu._is_vnni_supported())
    return _has(_VNNI)


def _has(names: tuple[str, ...]) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in names)
