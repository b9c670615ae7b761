"""What this machine's processor computes fast."""

from __future__ import annotations

import torch

_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""On x86, and the last one on Arm."""
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")


def has_onednn() -> bool:
    """Say whether this torch comes with the kernels that the rest is about."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def is_fast_at_bfloat16() -> bool:
    """Say whether it multiplies bfloat16 itself; one that does not is slower with it than with float32."""
    if not has_onednn():  # its products are the ones that use the instructions
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch; says nothing of Arm
        return bool(torch.cpu._is_avx512_bf16_supported())
    return _has(_BFLOAT16)


def adds_int8_without_overflow() -> bool:
    """Say whether it adds products of 8-bit numbers in 32 bits; older ones do it in 16, two at a time."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu._is_vnni_supported())
    return _has(_VNNI)


def _has(names: tuple[str, ...]) -> bool:
    found = torch.cpu.get_capabilities()
    return any(bool(found.get(name)) for name in names)
