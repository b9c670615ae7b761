"""The cost of decoding JPEG files to the model's pixels, and the effect of the fast way.

    PYTHONPATH=. python benchmarks/decode.py --out benchmarks/results/decode_cpu.json

Covered: CPU time of one thread from a file's path to the model's pixels, exact, fast, and fast as it was before pixels
were viewed instead of copied, in turn; the part of it that libjpeg takes; the difference of the pixels; the latency of
a tiny operation beside four threads that decode, with a view and with a copy; the number of captions of the small model
that differ.
Not covered: disks (the files are in the page cache), other formats.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from benchmarks.pictures import LARGE_SIZE, SIZE, photo
from benchmarks.suite import Section, main
from blip2cap.bench.images import QUALITY
from blip2cap.captioner import Captioner
from blip2cap.decode import image as images
from blip2cap.decode.image import Decoded, decode
from blip2cap.decode.pixel_view import view_pixels
from blip2cap.decode.read import read
from blip2cap.models.blip2.resize import choose_resizer
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from blip2cap.tiny.scenes import draw

MODEL_SIZES = (112, 224, 364)
MODES = ("exact", "fast")
WAYS = ("exact", "fast", "fast_copied", "libjpeg")
NUM_THREADS = 4
NUM_OPERATIONS = 1_000
SLEEP_S = 0.001
FIRST_SEED = 2_000
"""Scenes that neither trained the model nor are shown anywhere."""
NUM_SCENES = 200


def photos(size: tuple[int, int], num_files: int, num_rounds: int) -> Callable[[Section], None]:
    """Return a section that decodes photographs of one size for models of several sizes."""

    def run(section: Section) -> None:
        folder = section.pictures.folder
        section.facts["versions"] = {"libjpeg_turbo": features.version("libjpeg_turbo"), "numpy": np.__version__}
        paths = [photo(folder / f"{size[0]}-{at}.jpg", FIRST_SEED + at, size) for at in range(num_files)]
        for model_size in MODEL_SIZES:
            section.attempt(f"to_{model_size}", compare, paths, size=model_size, num_rounds=num_rounds)

    return run


def compare(paths: Sequence[Path], *, size: int, num_rounds: int) -> dict[str, Any]:
    """Return the CPU time for one image in each way, run in turns, and the difference of the pixels of both modes."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(num_rounds + 1):
        for path in paths:
            for way in WAYS:
                started = time.process_time()
                decode_file(path, size, way)
                if number:  # the first round warms up
                    seconds[way].append(time.process_time() - started)
    median_ms = {way: 1000 * statistics.median(seconds[way]) for way in WAYS}
    least_ms = {way: 1000 * min(seconds[way]) for way in WAYS}
    levels = np.stack(
        [np.abs(np.subtract(*(to_pixels(path, size, mode).pixels_HWC.astype(int) for mode in MODES))) for path in paths]
    )
    return {
        "num_files": len(paths),
        "mean_file_kb": round(statistics.mean(path.stat().st_size for path in paths) / 1000, 1),
        "model_size": size,
        **{f"{way}_cpu_ms": round(ms, 2) for way, ms in median_ms.items()},
        "least_cpu_ms": {way: round(ms, 2) for way, ms in least_ms.items()},
        "speedup": round(median_ms["exact"] / median_ms["fast"], 2),
        "max_levels": int(levels.max()),
        "mean_levels": round(float(levels.mean()), 3),
        "share_of_pixels_over_2_levels": round(float((levels.max(axis=-1) > 2).mean()), 4),
    }


def to_pixels(path: Path, size: int, mode: str) -> Decoded:
    """Read and decode one file as a run does."""
    options = DecodeOptions(mode=mode)
    return decode(read(ImageRef(path=os.fspath(path), name=path.name), options), size, options, choose_resizer())


def decode_file(path: Path, size: int, way: str) -> None:
    """Decode one file; `libjpeg` stops at the pixels that libjpeg returns in fast mode, before they are resized."""
    if way == "libjpeg":
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.decodermaxblock = len(data)  # type: ignore[attr-defined]
            image.draft(None, (2 * size, 2 * size))  # type: ignore[no-untyped-call]
            image.load()
    else:
        with copied() if way == "fast_copied" else nullcontext():
            to_pixels(path, size, way.removesuffix("_copied"))


@contextmanager
def copied() -> Iterator[None]:
    """Copy pixels with numpy, as it was before they were viewed."""
    images.view_pixels = np.array  # type: ignore[assignment]
    try:
        yield
    finally:
        images.view_pixels = view_pixels


def latency(section: Section) -> None:
    """Measure a tiny operation that needs the interpreter's lock, beside threads that decode; copied and viewed."""
    paths = [photo(section.pictures.folder / f"beside-{at}.jpg", FIRST_SEED + at, SIZE) for at in range(NUM_THREADS)]
    section.facts |= {"num_threads": NUM_THREADS, "num_operations": NUM_OPERATIONS}
    alone = operations_us()
    section.facts["alone"] = spread(alone)
    found: dict[str, list[float]] = {"copied": [], "viewed": []}
    for _ in range(5):  # in turn: the machine is shared
        for name, us in found.items():
            with copied() if name == "copied" else nullcontext():
                us += beside(paths)
    section.facts |= {name: spread(us) for name, us in found.items()}


def beside(paths: Sequence[Path]) -> list[float]:
    """Measure the operation beside a thread for each file."""
    ended = threading.Event()

    def work(path: Path) -> None:
        while not ended.is_set():
            to_pixels(path, 224, "fast")

    threads = [threading.Thread(target=work, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    try:
        return operations_us()
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def operations_us() -> list[float]:
    """Measure how late a thread that sleeps for a moment goes on, as it needs the lock again, in microseconds."""
    found = []
    for _ in range(NUM_OPERATIONS):
        started = time.perf_counter()
        time.sleep(SLEEP_S)
        found.append(1e6 * (time.perf_counter() - started - SLEEP_S))
    return found


def spread(us: Sequence[float]) -> dict[str, float]:
    """Return the middle and the upper end of latencies."""
    percentiles = np.percentile(us, (50, 90, 99))
    return {
        "mean_us": round(statistics.mean(us), 1),
        **{f"p{at}_us": round(float(value), 1) for at, value in zip((50, 90, 99), percentiles, strict=True)},
    }


def captions(section: Section) -> None:
    """Caption JPEGs of 640x480 with the small model in both modes; count the differing and the right captions."""
    scenes = [draw(FIRST_SEED + at) for at in range(NUM_SCENES)]
    paths = [section.pictures.folder / f"scene-{at}.jpg" for at in range(NUM_SCENES)]
    for scene, path in zip(scenes, paths, strict=True):
        scene.image.save(path, quality=QUALITY)
    texts: dict[str, list[str]] = {}
    for mode in MODES:
        captioner = Captioner.load("tiny", device="cpu", dtype="float32", decode=DecodeOptions(mode=mode))
        texts[mode] = captioner.caption(paths)
    section.facts |= {
        "model": "tiny",
        "dtype": "float32",
        "num_scenes": NUM_SCENES,
        "num_differ": sum(one != other for one, other in zip(texts["exact"], texts["fast"], strict=True)),
        "num_right": {
            mode: sum(scene.caption == text for scene, text in zip(scenes, texts[mode], strict=True)) for mode in MODES
        },
    }


SECTIONS = {
    "640x480": photos(SIZE, 8, 20),
    "4000x3000": photos(LARGE_SIZE, 3, 7),
    "latency": latency,
    "captions": captions,
}

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, None))
