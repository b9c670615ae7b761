"""The cost of Ray beside a plain run: `python benchmarks/ray_parts.py --out FILE`.

Covered: the time from the start of the command to the first part, with `--ray local` and without; the time that each
further part takes longer, with one actor, the same model and one image in each part.
Not covered: networks, and clusters that run already, where the first part comes sooner.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray

from blip2cap import __version__
from blip2cap.tiny.scenes import draw

NUM_IMAGES = 200
SIZE = (64, 48)
RAY = ("--ray", "local", "--ray-cpus", str(os.cpu_count()))
"""One actor, which has all cores: the plain run is one process, too."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ("plain", "ray")}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        for seed in range(NUM_IMAGES):
            draw(seed, SIZE).image.save(images / f"{seed:04}.png")
        for number in range(options.rounds):
            for name, times in rounds.items():
                times.append(measure(images, Path(folder, f"{name}{number}"), RAY if name == "ray" else ()))
                print(name, times[-1], flush=True)
    result = {
        "command": "python benchmarks/ray_parts.py --out benchmarks/results/ray.json",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": {"num_cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2)},
        "versions": {"blip2cap": __version__, "python": platform.python_version(), "ray": ray.__version__},
        "num_images": NUM_IMAGES,
        "rounds": rounds,
        **summary(rounds),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(summary(rounds), indent=2))


def measure(images: Path, out: Path, flags: tuple[str, ...]) -> dict[str, float]:
    """Run a command; return when its first part and its last part existed, in seconds after its start."""
    command = [sys.executable, "-m", "blip2cap", "caption", str(images), "--out", f"{out}/", "--part-size", "1", *flags]
    command += shlex.split("--model tiny --dtype float32 --batch-size 1 --threads 1 --quiet")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    process = subprocess.Popen(command, env=env)
    first_s = last_s = 0.0
    while process.poll() is None and not last_s:
        time.sleep(0.005)
        names = os.listdir(out) if out.exists() else []
        count = sum(name.endswith(".parquet") for name in names)
        now = time.monotonic() - started
        first_s = first_s or (now if count else 0.0)
        last_s = now if count == NUM_IMAGES else 0.0
    if process.wait() != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    end_s = time.monotonic() - started
    return {"first_part_s": round(first_s, 3), "last_part_s": round(last_s or end_s, 3), "end_s": round(end_s, 3)}


def summary(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the medians that are claimed."""

    def median(name: str, what: str) -> float:
        return statistics.median(times[what] for times in rounds[name])

    def parts_s(name: str) -> float:
        """Return the time from the first to the last part."""
        return statistics.median(times["last_part_s"] - times["first_part_s"] for times in rounds[name])

    more_s = (parts_s("ray") - parts_s("plain")) / (NUM_IMAGES - 1)
    return {
        "first_part_later_s": round(median("ray", "first_part_s") - median("plain", "first_part_s"), 2),
        "ms_more_for_each_part": round(1000 * more_s, 2),
        "ms_for_each_part_of_one_image": {
            name: round(1000 * parts_s(name) / (NUM_IMAGES - 1), 2) for name in ("plain", "ray")
        },
        "end_after_last_part_s": round(median("ray", "end_s") - median("ray", "last_part_s"), 2),
    }


if __name__ == "__main__":
    main()
