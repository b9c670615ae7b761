"""Unseen scenes as JPEG files, read with the image decoder that users' files are read with."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Iterator

from blip2cap.decode.image import Pixels, decode
from blip2cap.options import DecodeOptions
from blip2cap.tiny.scenes import Scene, draw

_SIZES = ((640, 480), (480, 640), (512, 512), (800, 450))
"""Image sizes; most files have the first."""


def drawn_files(seeds: Iterable[int], size: int) -> Iterator[tuple[int, Scene, Pixels]]:
    """Draw each scene, save it as JPEG and decode it, like a user's file."""
    for seed in seeds:
        rng = random.Random(f"file {seed}")
        scene = draw(seed, rng.choices(_SIZES, weights=(7, 1, 1, 1))[0])
        file = io.BytesIO()
        scene.image.save(file, "JPEG", quality=rng.randint(70, 95))
        yield seed, scene, decode(file.getvalue(), size, DecodeOptions()).pixels_HWC
