"""The cost of decoding JPEG files to the model's pixels, and the effect of the fast way.

    PYTHONPATH=. python benchmarks/decode.py --out benchmarks/results/decode_cpu.json

Covered: CPU time of one thread from a file's path to the model's pixels, exact and fast in turn; the difference of
their pixels; the number of captions of the small model that differ.
Not covered: disks (the files are in the page cache), other formats, waiting for the interpreter's lock.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import features

from benchmarks.pictures import LARGE_SIZE, SIZE, photo
from benchmarks.suite import Section, main
from blip2cap.bench.images import QUALITY
from blip2cap.captioner import Captioner
from blip2cap.decode.image import Decoded, decode
from blip2cap.decode.read import read
from blip2cap.models.blip2.resize import choose_resizer
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from blip2cap.tiny.scenes import draw

MODEL_SIZES = (112, 224, 364)
MODES = ("exact", "fast")
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
    """Return the median CPU time for one image in both modes, run in turns, and the difference of their pixels."""
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(num_rounds + 1):
        for path in paths:
            for mode in MODES:
                started = time.process_time()
                to_pixels(path, size, mode)
                if number:  # the first round warms up
                    seconds[mode].append(time.process_time() - started)
    median_ms = {mode: 1000 * statistics.median(seconds[mode]) for mode in MODES}
    levels = np.stack(
        [np.abs(np.subtract(*(to_pixels(path, size, mode).pixels_HWC.astype(int) for mode in MODES))) for path in paths]
    )
    return {
        "num_files": len(paths),
        "mean_file_kb": round(statistics.mean(path.stat().st_size for path in paths) / 1000, 1),
        "model_size": size,
        "exact_cpu_ms": round(median_ms["exact"], 2),
        "fast_cpu_ms": round(median_ms["fast"], 2),
        "speedup": round(median_ms["exact"] / median_ms["fast"], 2),
        "max_levels": int(levels.max()),
        "mean_levels": round(float(levels.mean()), 3),
        "share_of_pixels_over_2_levels": round(float((levels.max(axis=-1) > 2).mean()), 4),
    }


def to_pixels(path: Path, size: int, mode: str) -> Decoded:
    """Read and decode one file as a run does."""
    options = DecodeOptions(mode=mode)
    return decode(read(ImageRef(path=os.fspath(path), name=path.name), options), size, options, choose_resizer())


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


SECTIONS = {"640x480": photos(SIZE, 8, 20), "4000x3000": photos(LARGE_SIZE, 3, 7), "captions": captions}

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, None))
