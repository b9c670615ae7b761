"""Three profiles: one batch of the vision encoder, one step of the decoder, and the capture of such a step.

Each is timed without the profiler, then profiled once: its kernels by name, the longest first, and the time in which
the device has one of them to run. Without a GPU there is no capture, and operations stand for kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from blip2cap.bench.report import digits
from blip2cap.models.blip2.model import Blip2

NUM_IMAGES, NUM_ROWS, NEW_TOKENS = 128, 512, 12
_TOP = 12
_REPEATS = 5


@torch.inference_mode()
def measure_profiles(model: Blip2, *, num_images: int = NUM_IMAGES, num_rows: int = NUM_ROWS) -> dict[str, Any]:
    """Profile a model that has a decoder of its own."""
    decoder, device = model.decoder, model.device
    assert decoder is not None, "only lean decoders are profiled"
    with model.current():
        pixels = torch.randint(256, (num_images, model.image_size, model.image_size, 3), dtype=torch.uint8).numpy()
        num_prefix = model.num_query_tokens
        cache = decoder.new_cache(num_rows, num_prefix, NEW_TOKENS)
        ids = torch.zeros(num_rows, dtype=torch.long, device=device)
        step = partial(decoder.step, ids, ids + decoder.num_given(num_prefix), cache, cache.length)
        facts = {
            "num_images": num_images,
            "num_rows": num_rows,
            "vision_batch": _profile(model, lambda: model.encode(list(pixels))),
            "step": _profile(model, step),
        }
        if device.type == "cuda":
            facts |= _capture(model, step)
    return facts


def _capture(model: Blip2, step: Callable[[], object]) -> dict[str, Any]:
    """Time the capture of a step, and profile its replay."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    model.wait()
    started = time.perf_counter()
    with torch.cuda.graph(graph, stream=stream):
        step()
    model.wait()
    capture_s = time.perf_counter() - started
    return {"capture": {"ms": digits(1000 * capture_s)}, "replay": _profile(model, graph.replay)}


def _profile(model: Blip2, work: Callable[[], object]) -> dict[str, Any]:
    """Time `work`, then profile it once."""
    seconds = []
    for _ in range(1 + _REPEATS):
        model.wait()
        started = time.perf_counter()
        work()
        model.wait()
        seconds.append(time.perf_counter() - started)
    on_gpu = model.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        work()
        model.wait()
    kind, measure = (DeviceType.CUDA, "self_device_time_total") if on_gpu else (DeviceType.CPU, "self_cpu_time_total")
    events = [event for event in profiler.key_averages() if event.device_type == kind and getattr(event, measure)]
    events.sort(key=lambda event: -getattr(event, measure))
    return {
        "first_ms": digits(1000 * seconds[0]),
        "ms": digits(1000 * sorted(seconds[1:])[_REPEATS // 2]),
        "device_ms": digits(sum(getattr(event, measure) for event in events) / 1000),
        "num_kernels": sum(event.count for event in events),
        "top": [
            {"name": event.key[:100], "count": event.count, "ms": digits(getattr(event, measure) / 1000)}
            for event in events[:_TOP]
        ],
    }
