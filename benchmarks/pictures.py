"""The files of a suite: drawn scenes of 640x480, scenes of 12 megapixels with the grain of a camera, and empty files.

All scenes differ, also at the model's size: blip2cap captions equal images only once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from blip2cap.bench.images import QUALITY, draw_images
from blip2cap.tiny.scenes import draw

SIZE, LARGE_SIZE = (640, 480), (4000, 3000)
_FIRST_SEED = 100_000
"""Far from the scenes that trained the small model."""
_SHIFTS = 16
"""Pictures made of one large scene: drawing its grain takes seconds."""
_GRAIN = 5.5
"""Standard deviation of the noise in levels: at quality 90 the files are as long as those of cameras."""
_FEW = 256
"""Drawing this many takes less time than starting other processes."""


class Pictures:
    """Folders of pictures that are drawn when they are first needed."""

    def __init__(self, folder: Path, *, num_processes: int | None = None, num_few: int = _FEW) -> None:
        self.folder, self.num_few = folder, num_few
        self.num_processes = num_processes or os.cpu_count() or 1
        self.num_scenes = self.num_large = 0

    def num_free(self) -> int:
        """Return the number of files that can still be created."""
        return os.statvfs(self.folder).f_favail

    def scenes(self, count: int) -> str:
        """Return a folder with at least `count` scenes, named in their order; the first ones are always the same."""
        folder = self.folder / "scenes"
        seeds = range(_FIRST_SEED + self.num_scenes, _FIRST_SEED + count)
        self._draw(partial(draw_images, folder, size=SIZE), folder, seeds, few=self.num_few)
        self.num_scenes = max(count, self.num_scenes)
        return str(folder)

    def large(self, count: int) -> str:
        """Return a folder with at least `count` pictures of 12 megapixels."""
        folder = self.folder / "large"
        first, end = (-(-number // _SHIFTS) for number in (self.num_large, count))
        self._draw(partial(draw_large, folder), folder, range(_FIRST_SEED + first, _FIRST_SEED + end), few=1)
        self.num_large = max(count, self.num_large)
        return str(folder)

    def _draw(self, draw: Callable[[Sequence[int]], object], folder: Path, seeds: Sequence[int], *, few: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if len(seeds) <= few or self.num_processes == 1:
            draw(seeds)
            return
        shares = [seeds[number :: self.num_processes] for number in range(self.num_processes)]
        # New processes, not forks: this one may hold a GPU.
        with ProcessPoolExecutor(self.num_processes, mp_context=get_context("spawn")) as pool:
            for done in [pool.submit(draw, share) for share in shares]:
                done.result()

    @contextmanager
    def empty(self, name: str, num_files: int, num_folders: int) -> Iterator[Path]:
        """Create empty files with the suffix of images, evenly spread; remove them, and the rows, at the end."""
        folder = self.folder / name
        below = [folder if num_folders == 1 else folder / f"{number:04}" for number in range(num_folders)]
        for one in below:
            one.mkdir(parents=True)
        prefixes = [f"{one}/photo-" for one in below]
        try:
            for number in range(num_files):
                os.close(os.open(f"{prefixes[number % num_folders]}{number:09}.jpg", os.O_CREAT | os.O_WRONLY))
            yield folder
        finally:
            shutil.rmtree(folder)
            for path in self.folder.glob(f"{name}.*"):
                path.unlink()


def photo(path: Path, seed: int, size: tuple[int, int]) -> Path:
    """Save a scene like a camera: darker towards the corners, with grain, some of it coarser than a pixel."""
    width, height = size
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    light = 1 - 0.2 * (x**2 + y**2)
    coarse = rng.normal(0, _GRAIN / 2, (height // 2, width // 2, 3)).repeat(2, 0).repeat(2, 1)
    grain = rng.normal(0, _GRAIN, (height, width, 1)) + coarse
    pixels = np.asarray(draw(seed, size).image) * light[:, :, None] + grain
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=QUALITY)
    return path


def draw_large(folder: Path, seeds: Sequence[int]) -> None:
    """Draw a large scene for each seed, and save it several times, each shifted a step further to the side."""
    for seed in seeds:
        with Image.open(photo(folder / f"{seed:06}-00.jpg", seed, LARGE_SIZE)) as image:
            pixels = np.asarray(image)
        for number in range(1, _SHIFTS):
            shifted = np.roll(pixels, number * LARGE_SIZE[0] // _SHIFTS, axis=1)
            Image.fromarray(shifted).save(folder / f"{seed:06}-{number:02}.jpg", quality=QUALITY)
