"""What it costs to make pixels of JPEG files, and what the fast way changes: `python benchmarks/decode.py --out FILE`.

Covered: CPU time of one thread from a file's path to the model's pixels, exact and fast in turn; how far their pixels
differ; how many captions of the small model differ.
Not covered: disks (the files are in the page cache), other formats, waiting for the interpreter's lock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

from blip2cap import __version__
from blip2cap.decode.image import Decoded, decode
from blip2cap.decode.read import read
from blip2cap.models.blip2.resize import choose_resizer
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from blip2cap.tiny.scenes import draw

KINDS = {"640x480": ((640, 480), 8, 20), "4000x3000": ((4000, 3000), 3, 7)}
"""Name -> size, number of files, rounds over all of them."""
MODEL_SIZES = (112, 224, 364)
MODES = ("exact", "fast")
FIRST_SEED = 2_000
"""Scenes that neither trained the model nor are shown anywhere."""
_GRAIN = 5.5
"""Standard deviation of the noise in levels: at quality 90 the files are as long as those of cameras."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    parser.add_argument("--captions", type=int, default=200, help="scenes to caption both ways; 0 leaves it out")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"command": shlex.join(["python", *sys.argv]), **machine(), "decode": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, (size, num_files, num_rounds) in KINDS.items():
            paths = [photo(Path(folder) / f"{name}-{at}.jpg", FIRST_SEED + at, size) for at in range(num_files)]
            for model_size in MODEL_SIZES:
                measured = {"image": name, "num_files": num_files, **measure(paths, model_size, num_rounds)}
                print(json.dumps(measured))
                result["decode"].append(measured)
        if arguments.captions:
            result["captions"] = compare_captions(Path(folder), arguments.captions)
            print(json.dumps(result["captions"]))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """Name what was measured on, and with what."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpus = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": cpus[0] if cpus else platform.machine(), "num_cores": os.cpu_count()},
        "versions": {
            "blip2cap": __version__,
            "python": platform.python_version(),
            "pillow": PIL.__version__,
            "libjpeg_turbo": features.version("libjpeg_turbo"),
            "numpy": np.__version__,
        },
    }


def photo(path: Path, seed: int, size: tuple[int, int]) -> Path:
    """Save a scene as a camera would have: darker towards the corners, with grain, some of it coarser than a pixel."""
    width, height = size
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    light = 1 - 0.2 * (x**2 + y**2)
    coarse = rng.normal(0, _GRAIN / 2, (height // 2, width // 2, 3)).repeat(2, 0).repeat(2, 1)
    grain = rng.normal(0, _GRAIN, (height, width, 1)) + coarse
    pixels = np.asarray(draw(seed, size).image) * light[:, :, None] + grain
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def measure(paths: Sequence[Path], size: int, num_rounds: int) -> dict[str, Any]:
    """Return median CPU time an image for both modes, taken in turn, and the difference of their pixels."""
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
    """Do what a run does with one file."""
    options = DecodeOptions(mode=mode)
    return decode(read(ImageRef(path=os.fspath(path), name=path.name), options), size, options, choose_resizer())


def compare_captions(folder: Path, num_scenes: int) -> dict[str, Any]:
    """Caption JPEGs of 640x480 with the small model both ways; count what differs and what is right."""
    from blip2cap import Captioner

    scenes = [draw(FIRST_SEED + at) for at in range(num_scenes)]
    paths = [folder / f"scene-{at}.jpg" for at in range(num_scenes)]
    for scene, path in zip(scenes, paths, strict=True):
        scene.image.save(path, quality=90)
    captions: dict[str, list[str]] = {}
    for mode in MODES:
        captioner = Captioner.load("tiny", device="cpu", dtype="float32", decode=DecodeOptions(mode=mode))
        captions[mode] = captioner.caption(paths)
    right = {mode: sum(s.caption == text for s, text in zip(scenes, captions[mode], strict=True)) for mode in MODES}
    return {
        "model": "tiny",
        "dtype": "float32",
        "num_scenes": num_scenes,
        "num_differ": sum(one != other for one, other in zip(captions["exact"], captions["fast"], strict=True)),
        "num_right": right,
    }


if __name__ == "__main__":
    main()
