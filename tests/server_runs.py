"""Images for runs with a server, the texts that they get, and faults of the server."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.commands import num_lines, read_rows
from tests.fault_server import Asked, Behaviour, Reply, error, text_of


def noise(folder: Path, count: int) -> Path:
    """Save small images, each with other pixels."""
    folder.mkdir()
    random_numbers = np.random.default_rng(0)
    for number in range(count):
        pixels = random_numbers.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.png")
    return folder


def texts(path: Path) -> list[str]:
    return [row["text"] for row in read_rows(path)]


def has_rows(path: Path, count: int) -> bool:
    return num_lines(path) >= count


def expected(folder: Path) -> list[str]:
    """Return the texts of a folder of small PNG files, which are sent as they are."""
    return [text_of(path.read_bytes()) for path in sorted(folder.rglob("*.png"))]


def once(fault: Reply, *, on: Callable[[Asked], bool] = lambda asked: asked.number % 3 == 0) -> Behaviour:
    """Fail at the first attempt for some of the images."""
    return lambda asked: fault if not asked.is_trial and asked.attempt == 0 and on(asked) else Reply()


def injected(share: float, seed: int) -> Behaviour:
    """Fail at this share of the first attempts, in every way, and answer every later one."""
    faults = [error(500), Reply(cut=True), Reply(drop=True), Reply(body=b'{"choices": ['), error(502)]

    def behave(asked: Asked) -> Reply:
        drawn = random.Random(f"{seed} {asked.url}")
        if asked.is_trial or asked.attempt or drawn.random() >= share:
            return Reply()
        if asked.number in (40, 41, 42, 90):
            return error(429, "slow down", Retry_After="0")
        return drawn.choice(faults)

    return behave
