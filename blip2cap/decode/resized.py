"""Image files -> RGB uint8 pixels of any size within a number of pixels, for models that take images of any size.

The image is that of `decode/image.py`: upright, transparency on white. It keeps its aspect ratio and is never enlarged;
a larger one is made smaller with Pillow's bicubic filter. In mode `fast` a large JPEG is decoded at a reduced size that
is at least twice the size to resize to.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFile

from blip2cap.decode.failures import our_errors
from blip2cap.decode.image import MARGIN, SIDEWAYS, Decoded, Unpacked, opened, to_rgb, transposition, upright_rgb
from blip2cap.options import DecodeOptions


def size_within(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Return the size of an image within `max_pixels`: its own, or a smaller one of the same aspect ratio.

    Both sides are at least 1, so a very long image of one row becomes shorter than its aspect ratio says.
    """
    if width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    short = max(1, int(min(width, height) * scale))
    long = max(1, min(int(max(width, height) * scale), max_pixels // short))
    return (short, long) if width <= height else (long, short)


def decode_within(data: bytes, max_pixels: int, options: DecodeOptions) -> Decoded:
    """Decode the bytes of an image file to RGB [H, W, 3] of at most `max_pixels`. Raises ImageError."""
    return decoded_as(unpack_within(data, max_pixels, options))


def unpack_within(data: bytes, max_pixels: int, options: DecodeOptions) -> Unpacked:
    """Do the part of decode_within() that handles untrusted data. Raises ImageError."""
    with opened(data, options) as image:
        if image.format in ("JPEG", "MPO"):
            image.decodermaxblock = len(data)  # as in decode/image.py
            if options.mode == "fast":
                return _unpack_reduced(image, max_pixels)
        return _unpack(image, max_pixels)


def convert_within(image: Image.Image, max_pixels: int) -> Decoded:
    """Convert an open Pillow image to RGB of at most `max_pixels`, upright. Raises ImageError."""
    with our_errors(b""):
        return decoded_as(_unpack(image, max_pixels))


def decoded_as(image: Unpacked) -> Decoded:
    """Return an unpacked image of the right size as the input of a model."""
    return Decoded(content=image.pixels_HWC, width=image.width, height=image.height)


def _unpack_reduced(image: ImageFile.ImageFile, max_pixels: int) -> Unpacked:
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size if that is large enough; else in full."""
    width, height = image.size
    size = size_within(width, height, max_pixels)
    _, box = image.draft(None, (MARGIN * size[0], MARGIN * size[1])) or ("", None)
    if image.size == (width, height):
        return _unpack(image, max_pixels)
    image.load()
    turn = transposition(image)
    # If the size is no multiple of the factor, the last column and row reach beyond the image: the box cuts that off.
    small = to_rgb(image).resize(size, Image.Resampling.BICUBIC, box)
    if turn is not None:
        small = small.transpose(turn)
    if turn in SIDEWAYS:
        width, height = height, width
    return Unpacked(pixels_HWC=np.array(small), width=width, height=height)


def _unpack(image: Image.Image, max_pixels: int) -> Unpacked:
    rgb = upright_rgb(image)
    size = size_within(rgb.width, rgb.height, max_pixels)
    small = rgb if size == rgb.size else rgb.resize(size, Image.Resampling.BICUBIC)
    return Unpacked(pixels_HWC=np.array(small), width=rgb.width, height=rgb.height)
