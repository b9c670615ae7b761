"""Number and devices of the workers of a run. Imports no torch where there is no GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil

from blip2cap.errors import UsageError
from blip2cap.models.base import Checkpoint
from blip2cap.options import ModelOptions
from blip2cap.workers.options import WorkerOptions

LARGE = 10_000
"""Number of images from which it pays to start several processes on a CPU: a second one takes seconds to start."""
_SMALL_MODEL = 200_000_000
"""Size of the weights of a small model, in bytes: its operations are too short for several threads each, which wait for
one another at every one. Larger models compute as fast in one process, with one copy of the weights."""
_PROCESS_BYTES = 500_000_000
"""Memory of a process without its weights: torch and its libraries."""


def choose_devices(
    options: WorkerOptions, model: ModelOptions, checkpoint: Checkpoint, is_large: Callable[[], bool]
) -> tuple[str, ...]:
    """Return the device of each worker; one entry: no worker is needed, the run takes place in this process.

    `is_large` says whether there are at least LARGE images. Raises UsageError for options that exclude each other, and
    for more workers than GPUs.
    """
    num_workers = options.num_workers
    if options.gpus:
        if model.device not in ("auto", "cuda"):
            raise _exclude(f"--devices {options.devices}", f"--device {model.device}")
        if model.device_map is not None:
            raise _exclude(f"--devices {options.devices}", f"--device-map {model.device_map}")
        num_gpus = count_gpus()
        if max(options.gpus) >= num_gpus:
            raise UsageError(
                f"--devices {options.devices}: torch can use {num_gpus} GPUs here, numbered from 0. Give others."
            )
        return tuple(f"cuda:{gpu}" for gpu in options.gpus)
    if num_workers == 1 or (num_workers is None and (model.device_map or ":" in model.device)):
        return (model.device,)
    if model.device_map is not None:
        raise _exclude(f"--workers {options.workers}", f"--device-map {model.device_map}")
    if ":" in model.device:
        raise _exclude(f"--workers {options.workers}", f"--device {model.device}")
    num_gpus = 0 if model.device == "cpu" else count_gpus()
    if num_gpus or model.device == "cuda":
        if num_workers is not None and num_workers > num_gpus:
            raise UsageError(
                f"--workers {num_workers}: torch can use {num_gpus} GPUs here, one process each. Use fewer."
            )
        return tuple(f"cuda:{gpu}" for gpu in range(num_workers or num_gpus)) if num_gpus > 1 else (model.device,)
    if num_workers is None:
        num_lanes = _num_lanes(checkpoint)
        num_workers = num_lanes if num_lanes > 1 and is_large() else 1
    return ("cpu",) * num_workers


def count_gpus() -> int:
    """Return the number of GPUs that torch can use. Imports torch only where there is a driver."""
    if not any(os.path.exists(each) for each in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
        return 0
    import torch

    return int(torch.cuda.device_count())


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_lanes(checkpoint: Checkpoint) -> int:
    """Return the number of processes on a CPU: one for each core that has the memory, if the model is small."""
    num_bytes = sum(file.stat().st_size for file in Path(checkpoint.folder).glob("*.safetensors"))
    if not 0 < num_bytes < _SMALL_MODEL:
        return 1
    in_memory = int(psutil.virtual_memory().available) // 2 // (_PROCESS_BYTES + 4 * num_bytes)
    return max(1, min(num_cores(), in_memory))


def _exclude(first: str, second: str) -> UsageError:
    return UsageError(f"{first} and {second} exclude each other. Leave one out.")


def environment_of(num_threads: int) -> dict[str, str]:
    """Return the variables of a worker that computes in this many threads, unless the user has set another number."""
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(num_threads)}
