"""The machine: its description, and the rates at which it multiplies matrices, moves memory and decodes images.

Each rate is the best of several trials: what the machine can do, not what it happened to do.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import blip2cap
from blip2cap.decode.inputs import ImageInput
from blip2cap.decode.read import read
from blip2cap.errors import ImageError
from blip2cap.models.blip2.linear_layers import pack
from blip2cap.models.blip2.quantize import quantize
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from blip2cap.workers.devices import num_cores

_PACKAGE = Path(blip2cap.__file__).resolve().parent
SHAPES = ((1408, 6144), (6144, 1408), (4096, 4096))
"""Inner and outer width of the products: the ViT's two widest layers, and a square one."""
_ROWS = {"cpu": 1024, "cuda": 16384}
_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Well above what a cache holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The machine, and the software, of a benchmark."""

    cpu: str
    num_cores: int
    """Cores that this process may use."""
    memory_gb: float
    gpu: str
    """Name of the GPU; "" without one."""
    gpu_memory_gb: float
    num_gpus: int
    """GPUs that this process sees, of which one is measured; 0 for a run on the CPU."""
    system: str
    python: str
    num_torch_threads: int
    versions: dict[str, str]
    """Versions of blip2cap and of the libraries that compute; CUDA's where there is a GPU."""
    commit: str
    """Commit of blip2cap's repository, with `+` if files differ from it; "" if it is installed elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """Reading and decoding by one thread, in seconds for one image."""

    num_images: int
    """Images that could be decoded."""
    read_s: float
    decode_s: float


def describe(device: torch.device, package: Path = _PACKAGE) -> Machine:
    """Describe the machine as a run on `device` sees it, and the commit of the code in `package`."""
    versions = {"blip2cap": blip2cap.__version__}
    versions |= {name: version(name) for name in ("torch", "transformers", "Pillow")}
    gpu, gpu_memory_gb, num_gpus = "", 0.0, 0
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu, gpu_memory_gb = properties.name, properties.total_memory / 1e9
        num_gpus = torch.cuda.device_count()
        versions["cuda"] = str(torch.version.cuda)
    return Machine(
        cpu=_cpu_name(),
        num_cores=num_cores(),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        gpu=gpu,
        gpu_memory_gb=round(gpu_memory_gb, 1),
        num_gpus=num_gpus,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        num_torch_threads=torch.get_num_threads(),
        versions=versions,
        commit=_commit(package),
    )


@torch.inference_mode()
def matrix_rate(
    device: torch.device,
    dtype: torch.dtype,
    kind: str | None = None,
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rows: int = 0,
    budget_s: float = 1.5,
) -> float:
    """Measure the operations per second of Linear layers, of the ViT's shapes; a multiply and an add are two.

    The layers are prepared as a model's are; `kind` is the quantisation of its weights.
    """
    rows = rows or _ROWS[device.type]
    best = 0.0
    for inner, outer in shapes:
        layer = nn.Sequential(nn.Linear(inner, outer, bias=False, dtype=dtype, device=device))
        if kind is not None:
            quantize(layer, kind, device)
        if device.type == "cpu":
            pack(layer)
        x = torch.randn(rows, inner, dtype=dtype, device=device)
        seconds = _best_seconds(partial(layer, x), device, budget_s / len(shapes))
        best = max(best, 2.0 * rows * inner * outer / seconds)
    return best


def memory_rate(device: torch.device, *, num_bytes: int = 0, budget_s: float = 0.6) -> float:
    """Measure the bytes per second of a large copy, read and written together."""
    num_bytes = num_bytes or _COPY_BYTES[device.type]
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    seconds = _best_seconds(lambda: target.copy_(source), device, budget_s)
    return 2.0 * num_bytes / seconds


def decoding_rate(
    refs: Sequence[ImageRef], form: ImageInput, options: DecodeOptions, *, budget_s: float = 3.0
) -> tuple[Decoding, list[ImageRef]]:
    """Read images, and decode them to this form, in this thread until the time is spent; return times and good images.

    Each file is read once before it is timed, so that all are measured from the cache of the system.
    """
    good, read_s, decode_s = [], 0.0, 0.0
    with closing(form.open(options)) as decoder:
        for ref in refs:
            try:
                read(ref, options)
                started = time.perf_counter()
                data = read(ref, options)
                was_read = time.perf_counter()
                decoder.decode(data, isolated=False)
            except (ImageError, MemoryError):
                continue
            decode_s += time.perf_counter() - was_read
            read_s += was_read - started
            good.append(ref)
            if read_s + decode_s > budget_s:
                break
    count = max(1, len(good))
    return Decoding(num_images=len(good), read_s=read_s / count, decode_s=decode_s / count), good


def synchroniser(device: torch.device) -> Callable[[], None]:
    """Return a function that waits until the device has finished its work; on a CPU it returns at once."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _best_seconds(work: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Return the shortest time of `work`: after a warm-up, of two or more trials, until the budget is spent."""
    wait = synchroniser(device)
    repeats = 1 if device.type == "cpu" else 10  # on a GPU a single call is too short for the clock
    best, spent, trials = float("inf"), 0.0, 0
    work()
    wait()
    while trials < 2 or spent < budget_s:
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        wait()
        seconds = time.perf_counter() - started
        best, spent, trials = min(best, seconds / repeats), spent + seconds, trials + 1
    return best


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _commit(package: Path) -> str:
    """Ask git, if the package lies in its own repository and not in an environment."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:
            return ""
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
