"""The JPEG files of a suite: drawn scenes of 640x480, and scenes of 12 megapixels with the grain of a camera.

All differ, also at the model's size: blip2cap would caption a picture that comes twice only once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.decode import photo
from blip2cap.bench.images import draw_images

SIZE, LARGE_SIZE = (640, 480), (4000, 3000)
_FIRST_SEED = 100_000
"""Far from the scenes that trained the small model."""
_SHIFTS = 16
"""Pictures made of one large scene: drawing its grain takes seconds."""
_QUALITY = 90
_FEW = 256
"""So many are drawn sooner than other processes are started."""


class Pictures:
    """Folders of pictures that are drawn when they are asked for."""

    def __init__(self, folder: Path, *, num_processes: int | None = None) -> None:
        self.folder = folder
        self.num_processes = num_processes or os.cpu_count() or 1
        self.num_scenes = self.num_large = 0
        """How many there are."""

    def scenes(self, count: int) -> str:
        """Return a folder with at least `count` scenes, named in their order; the first ones are always the same."""
        folder = self.folder / "scenes"
        seeds = range(_FIRST_SEED + self.num_scenes, _FIRST_SEED + count)
        self._draw(partial(draw_scenes, folder), folder, seeds, few=_FEW)
        self.num_scenes = max(count, self.num_scenes)
        return str(folder)

    def large(self, count: int) -> str:
        """Return a folder with at least `count` pictures of 12 megapixels."""
        folder = self.folder / "large"
        first, end = (-(-number // _SHIFTS) for number in (self.num_large, count))
        self._draw(partial(draw_large, folder), folder, range(_FIRST_SEED + first, _FIRST_SEED + end), few=1)
        self.num_large = max(count, self.num_large)
        return str(folder)

    def _draw(self, draw: Callable[[Sequence[int]], None], folder: Path, seeds: Sequence[int], *, few: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if len(seeds) <= few or self.num_processes == 1:
            draw(seeds)
            return
        shares = [seeds[number :: self.num_processes] for number in range(self.num_processes)]
        # Fresh processes, not forks: this one may hold a GPU.
        with ProcessPoolExecutor(self.num_processes, mp_context=get_context("spawn")) as pool:
            for done in [pool.submit(draw, share) for share in shares]:
                done.result()


def draw_scenes(folder: Path, seeds: Sequence[int]) -> None:
    """Draw a scene of 640x480 for each seed."""
    draw_images(folder, seeds, SIZE)


def draw_large(folder: Path, seeds: Sequence[int]) -> None:
    """Draw a large scene for each seed, and save it several times, each shifted a step further to the side."""
    for seed in seeds:
        first = photo(folder / f"{seed:06}-00.jpg", seed, LARGE_SIZE)
        with Image.open(first) as image:
            pixels = np.asarray(image)
        for number in range(1, _SHIFTS):
            shifted = np.roll(pixels, number * LARGE_SIZE[0] // _SHIFTS, axis=1)
            Image.fromarray(shifted).save(folder / f"{seed:06}-{number:02}.jpg", quality=_QUALITY)
