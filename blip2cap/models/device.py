"""The device and the dtype of a model, the memory of the device, and the instructions of this machine's processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from blip2cap.errors import UsageError
from blip2cap.models.base import Checkpoint
from blip2cap.models.vlm.families import VLM_FAMILIES

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


_NO_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Messages of the CPU allocator, of CUDA outside torch's allocator, and of cuBLAS for memory of its own."""


def choose_device(name: str) -> torch.device:
    """Resolve `auto` to the GPU if there is one. Raises UsageError for a device that does not exist."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: torch {torch.__version__} can use {torch.cuda.device_count()} GPUs here. "
            "Leave --device out, or use --device cpu."
        )
    return device


def choose_dtype(name: str, device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """Resolve `auto` for a checkpoint. Raises UsageError for float16 where activations overflow it."""
    family = VLM_FAMILIES.get(checkpoint.family)
    overflows = checkpoint.text_type == "t5" if family is None else not family.takes_float16
    if name == "float16" and overflows:
        what = "Flan-T5" if family is None else family.name
        raise UsageError(f"--dtype float16: {what} overflows in it. Use bfloat16 or float32.")
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type != "cuda":
        return torch.bfloat16 if is_fast_at_bfloat16() else torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32 if overflows else torch.float16


def free_bytes(device: torch.device) -> int:
    """Return the number of bytes that can still be allocated."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(psutil.virtual_memory().available)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise MemoryError when the device, or the machine, runs out of memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise MemoryError(str(error)) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise MemoryError(str(error)) from error
