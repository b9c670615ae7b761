"""Peak memory of a training: measured for one batch, and estimated from that for all steps."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blip2cap.errors import UsageError

_BYTES_PER_STATE = 8
"""AdamW keeps two float32 values for each parameter that trains."""
_BYTES_PER_BUCKET = 4
"""Several processes exchange gradients in buckets of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Peak memory of one batch forward and backward, and what the optimiser adds; in bytes."""

    measured: int
    """Peak in one batch: on a GPU of its memory, else of this process."""
    optimiser: int
    """State of the optimiser, which exists from the first step on, and of several processes a copy of the gradients."""

    @property
    def estimate(self) -> int:
        """Estimated peak of the training."""
        return self.measured + self.optimiser


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far, where that is possible: on CUDA and on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Return the peak of memory since the last reset: of the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_batch(
    trainee: Any, batch: dict[str, torch.Tensor], *, dtype: torch.dtype, part: str, num_processes: int = 1
) -> Memory:
    """Run one batch forward and backward and measure its peak; weights and random numbers stay as they are.

    `part` describes the batch in the message of the UsageError that is raised if it does not fit.
    """
    parameters = list(trainee.trainable().values())
    device = parameters[0].device
    reset_peak(device)
    devices = [device.index or 0] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            trainee.train()
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss = trainee(**{name: tensor.to(device) for name, tensor in batch.items()})["loss"]
            loss.backward()
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"{part} need more memory than {device} has ({gigabytes(peak_bytes(device))} used). Raise --accumulate, "
            "lower --batch-size, use --gradient-checkpointing, or train less: --train qformer or lora."
        ) from error
    finally:
        trainee.zero_grad(set_to_none=True)
    num_values = sum(each.numel() for each in parameters)
    per_value = _BYTES_PER_STATE + (_BYTES_PER_BUCKET if num_processes > 1 else 0)
    return Memory(measured=peak_bytes(device), optimiser=num_values * per_value)


def gigabytes(num_bytes: float) -> str:
    """Return a number of bytes for people: "1.5 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
