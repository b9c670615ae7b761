"""Worker processes beside one process, and beside the plain script: one command, six minutes at the most.

    PYTHONPATH=. python benchmarks/workers.py --out benchmarks/results/workers.json

`devices`: n devices that sleep for a fixed time for each batch: what the parent costs. `tiny`: the command line with
one process, two workers, and the plain script, in turns, from JPEG files to rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from PIL import Image

from benchmarks.measure import Facts
from benchmarks.sleeper import IMAGE_S, Sleeper
from benchmarks.suite import Section, divide, main, mean, most
from blip2cap.bench.programs import PLAIN
from blip2cap.engine.run import RunStats
from blip2cap.generate_options import GenerateOptions
from blip2cap.options import BatchOptions, DecodeOptions
from blip2cap.records import ImageRef
from blip2cap.tasks.base import Request
from blip2cap.tasks.caption import Caption
from blip2cap.workers.messages import Setup
from blip2cap.workers.pool import WorkerPool

NUM_DEVICES = (1, 2, 4, 8)
BATCH_SIZE = 16
NUM_BATCHES = 40
"""For each device."""
NUM_IMAGES = 5000
"""Enough that the start of the second process, seconds, does not decide."""
PLAIN_BATCH_SIZES = (16, 64)
_LOOK_S = 3.0


def devices(section: Section) -> None:
    """Measure n sleeping devices, from the moment at which all are ready."""
    rates: dict[int, float] = {}
    for count in NUM_DEVICES:
        rates[count] = section.attempt(f"devices_{count}", sleep, count).get("images_per_s", 0.0)
    for count in NUM_DEVICES[1:]:
        value = divide(rates[count], count * rates[1]) if rates[1] else None
        section.judge(f"efficiency_of_{count}", value, at_least=0.95)
    section.judge("efficiency_of_1", divide(rates[1] * IMAGE_S, 1), at_least=0.95)


def sleep(count: int) -> Facts:
    """Return the rate of this many devices."""
    with TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        Image.new("RGB", (8, 8), (1, 2, 3)).save(picture)
        task = Caption(template="a", generate=GenerateOptions(temperature=1.0))  # equal pictures are not left out
        setup = Setup(
            loader=Sleeper(),
            device="sleeping",
            dtype="auto",
            task=task,
            decode=DecodeOptions(num_threads=1),
            batch=BatchOptions(batch_size=BATCH_SIZE),
        )
        num_images = count * BATCH_SIZE * NUM_BATCHES
        requests = (
            Request(ref=ImageRef(path=str(picture), name=str(number)), labels=(None,)) for number in range(num_images)
        )
        pool = WorkerPool([setup] * count, environment={}, on_failure=lambda ref, error: None, say=print)
        stats = RunStats()
        with closing(pool):
            pool.wait(for_all=True)
            parent, started = psutil.Process().cpu_times(), time.perf_counter()
            for _ in pool.row_batches(pool.read_ahead(requests), stats):
                pass
            seconds = time.perf_counter() - started
            cpu_s = psutil.Process().cpu_times().user - parent.user
    return {
        "images_per_s": num_images / seconds,
        "seconds": seconds,
        "parent_cpu_ms_per_image": 1000 * cpu_s / num_images,
    }


def tiny(section: Section) -> None:
    """Caption with the small model: one process, two workers, the plain script, and the first two again."""
    images = section.pictures.scenes(NUM_IMAGES)

    def ours(name: str, workers: str) -> Facts:
        return section.attempt(name, caption, images, workers)

    def plain(batch_size: int) -> float | None:
        options = {"images": images, "model": "tiny", "device": "cpu", "batch_size": batch_size, "limit": 512}
        facts = section.peer(f"plain_batch_{batch_size}", PLAIN, **options, warmup=1, max_new_tokens=30)
        return facts.get("images_per_s")

    one, two = [ours("one_process", "1")], [ours("two_workers", "2")]
    best = most(*[plain(size) for size in PLAIN_BATCH_SIZES])
    one.append(ours("one_process_again", "1"))
    two.append(ours("two_workers_again", "2"))
    for key in ("images_per_s", "images_per_s_of_the_second_half"):
        rate, of_one = (mean(*(facts.get(key) for facts in turns)) for turns in (two, one))
        of = key.removeprefix("images_per_s")
        section.judge(f"times_one_process{of}", divide(rate, of_one), at_least=1.3)
        section.judge(f"times_the_plain_script{of}", divide(rate, best), at_least=4)


def caption(images: str, workers: str) -> Facts:
    """Caption a folder with the command line; return images/s from the first decode to the last row, and memory."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "blip2cap", "caption", images, "--limit", str(NUM_IMAGES), "-m", "tiny"]
        started = looked_at = time.perf_counter()
        first_row_s, peak = 0.0, 0
        half = last = (started, 0)
        out = Path(folder) / "captions.jsonl"
        with subprocess.Popen(
            [*command, "-o", str(out), "--workers", workers, "--json", "--quiet"], stdout=subprocess.PIPE
        ) as process:
            watched = psutil.Process(process.pid)
            while process.poll() is None:
                now, num_rows = time.perf_counter(), out.read_bytes().count(b"\n") if out.exists() else 0
                if num_rows and not first_row_s:
                    first_row_s = now - started
                if num_rows >= NUM_IMAGES // 2 and not half[1]:
                    half = now, num_rows
                if num_rows < NUM_IMAGES:
                    last = now, num_rows
                if time.perf_counter() - looked_at > _LOOK_S:  # seldom: it stops the process
                    peak, looked_at = max(peak, _memory(watched)), time.perf_counter()
                time.sleep(0.1)
            assert process.stdout is not None
            summary = json.load(process.stdout)
    return {
        "images_per_s": summary["images_per_s"],
        "images_per_s_of_the_second_half": (last[1] - half[1]) / (last[0] - half[0]),
        "seconds_with_start": time.perf_counter() - started,
        "first_row_s": first_row_s,
        "peak_mb": peak / 1e6,
    }


def _memory(process: psutil.Process) -> int:
    """Return the memory of a process and its children in bytes; pages that several share count in parts."""
    total = 0
    for each in (process, *_children(process)):
        try:
            total += each.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.Error:
        return []


if __name__ == "__main__":
    sys.exit(main(__doc__, {"devices": devices, "tiny": tiny}, None))
