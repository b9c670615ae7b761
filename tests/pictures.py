"""Functions that make image files for tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from blip2cap.decode.image import Decoded, decode
from blip2cap.options import DecodeOptions


def photo(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """Make an RGB picture with smooth and rough parts, as photographs have them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse, dtype=np.int64) + noise, 0, 255).astype(np.uint8))


def plain(mode: str, colour: object, size: int = 16) -> Image.Image:
    """Make a square of one colour."""
    return Image.new(mode, (size, size), colour)  # type: ignore[arg-type]


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    """Write an image file to memory."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def open_up(data: bytes, size: int = 16) -> Decoded:
    """Decode with the options that a run has unless told otherwise."""
    return decode(data, size, DecodeOptions())


def colour_of(decoded: Decoded) -> tuple[int, ...]:
    """Return the colour of a picture that has only one."""
    colours = np.unique(decoded.pixels_HWC.reshape(-1, 3), axis=0)
    assert len(colours) == 1, colours
    return tuple(colours[0].tolist())
