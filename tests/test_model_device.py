"""Device and dtype are chosen for the machine and the model; every way to run out of memory is a MemoryError."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blip2cap.errors import UsageError
from blip2cap.models.base import Checkpoint
from blip2cap.models.device import choose_device, choose_dtype, memory_errors

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def checkpoint_of(text_type: str) -> Checkpoint:
    config = {"text_config": {"model_type": text_type}}
    return Checkpoint(name="", folder=Path(), commit="", family=text_type, config=config)


def test_float16_is_refused_for_t5() -> None:
    with pytest.raises(UsageError, match="overflows"):
        choose_dtype("float16", CPU, checkpoint_of("t5"))
    assert choose_dtype("float16", CPU, checkpoint_of("opt")) == torch.float16


@pytest.mark.parametrize("kind", ["opt", "t5"])
@pytest.mark.parametrize(
    ("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)], ids=["bfloat16 is fast", "it is slow"]
)
def test_a_cpu_computes_in_bfloat16_where_it_is_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, kind: str, fast: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("blip2cap.models.device.is_fast_at_bfloat16", lambda: fast)
    assert choose_dtype("auto", CPU, checkpoint_of(kind)) == dtype
    assert choose_dtype("float32", CPU, checkpoint_of(kind)) == torch.float32


@pytest.mark.parametrize(
    ("kind", "fast", "dtype"),
    [
        ("opt", True, torch.bfloat16),
        ("t5", True, torch.bfloat16),
        ("opt", False, torch.float16),
        ("t5", False, torch.float32),
    ],
)
def test_a_gpu_without_bfloat16_takes_float16_but_never_for_t5(
    monkeypatch: pytest.MonkeyPatch, kind: str, fast: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
    assert choose_dtype("auto", GPU, checkpoint_of(kind)) == dtype


def test_a_gpu_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="device cpu"):
        choose_device(f"cuda:{torch.cuda.device_count()}")


@pytest.mark.parametrize(
    "words",
    ["CUDA error: out of memory", "DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED when ..."],
)
def test_every_way_to_have_no_memory_is_a_memory_error(words: str) -> None:
    with pytest.raises(MemoryError), memory_errors():
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="shapes"), memory_errors():
        raise RuntimeError("shapes do not match")
