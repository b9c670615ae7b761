"""Image files as people have them -> RGB uint8 pixels at the model's size.

For plain RGB files the pixels equal those of transformers' Pillow image processor bit for bit: bicubic, straight to the
square, aspect not kept. Everything else is first made into the RGB picture that a viewer would show. The one exception
is a large JPEG, which libjpeg hands out reduced unless the options say `exact`.

Covered: EXIF orientation, transparency (on white), palettes, CMYK, 16-bit and float grey, first frame of animations.
HEIC needs the extra `heif`.
Not covered: vector formats (they would start Ghostscript).
"""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile

from blip2cap.decode.failures import our_errors
from blip2cap.decode.formats import formats
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions

_TURNS: dict[int | None, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what brings the picture upright."""

_SIDEWAYS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}
"""Those that swap width and height."""

_MARGIN = 2
"""How many times the model's size a JPEG keeps, at the least, in both directions when it is read reduced."""

_RESIZER_PIXELS = 50_000_000
"""Larger pictures are resized in place by Pillow: another resizer needs a copy of all pixels."""

Pixels = npt.NDArray[np.uint8]
Resizer = Callable[[Pixels, int], Pixels]
"""RGB [H, W, 3] and a size -> the square, bicubic."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """One image as the model takes it."""

    pixels_HWC: Pixels
    """uint8 RGB, square at the model's size."""
    width: int
    """Of the image in pixels as displayed."""
    height: int
    digest: bytes = field(init=False, repr=False)
    """Of the pixels: equal pictures have equal digests."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.pixels_HWC.data).digest()[:16])


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    """One image after everything that needs Pillow: the square, or what a resizer makes the square of."""

    pixels_HWC: Pixels
    """uint8 RGB, upright."""
    width: int
    """Of the image in pixels as displayed."""
    height: int


def decode(data: bytes, size: int, options: DecodeOptions, resizer: Resizer | None = None) -> Decoded:
    """Decode the bytes of an image file to `size` x `size` RGB. Raises ImageError.

    `resizer` is a faster way to make pictures smaller than Pillow's, which may differ by a level or two; in exact mode
    it is not used.
    """
    return finish(unpack(data, size, options, to_square=resizer is None), size, resizer)


def unpack(data: bytes, size: int, options: DecodeOptions, *, to_square: bool) -> Unpacked:
    """Do all of decode() that reads what strangers have written; finish() does the rest. Raises ImageError.

    `to_square`: the picture is resized here in any case; else only in exact mode, or where Pillow does it better.
    """
    to_square = to_square or options.mode == "exact"
    with (
        our_errors(data),
        _own_limits(options.max_pixels),
        Image.open(io.BytesIO(data), formats=formats()) as image,
    ):
        _check_size(image, options)
        if image.format in ("JPEG", "MPO"):
            # All at once: every block of 64 KiB, Pillow's default, would wait for the interpreter's lock again.
            image.decodermaxblock = len(data)
            if options.mode == "fast":
                return _unpack_reduced(image, size, to_square=to_square)
        return _unpack(image, size, to_square=to_square)


def finish(image: Unpacked, size: int, resizer: Resizer | None) -> Decoded:
    """Resize what is not the square yet."""
    pixels_HWC = image.pixels_HWC
    if pixels_HWC.shape[:2] != (size, size):
        assert resizer is not None, "without a resizer, unpack() makes the square"
        pixels_HWC = resizer(pixels_HWC, size)
    return Decoded(pixels_HWC=pixels_HWC, width=image.width, height=image.height)


def resize(image: Image.Image, size: int) -> Decoded:
    """Bring an open picture to the model's size, upright and in RGB. Raises ImageError, as it may not be read yet."""
    with our_errors(b""):
        return finish(_unpack(image, size, to_square=True), size, None)


def _unpack_reduced(image: ImageFile.ImageFile, size: int, *, to_square: bool) -> Unpacked:
    """Let libjpeg reduce a JPEG by 2, 4 or 8 while it decodes; one that would come too small is decoded in full."""
    width, height = image.size
    _, box = image.draft(None, (_MARGIN * size, _MARGIN * size)) or ("", None)
    if image.size == (width, height):
        return _unpack(image, size, to_square=to_square)
    turn = _turn_of(image)
    rgb = to_rgb(image)
    if turn is None and box == (0, 0, *image.size):
        return Unpacked(pixels_HWC=_pixels(rgb, size, to_square=to_square), width=width, height=height)
    # The box leaves out what the last column and row show beyond the picture when its size is no multiple.
    small = rgb.resize((size, size), Image.Resampling.BICUBIC, box)
    if turn is not None:
        small = small.transpose(turn)
    if turn in _SIDEWAYS:
        width, height = height, width
    return Unpacked(pixels_HWC=np.array(small), width=width, height=height)


def _unpack(image: Image.Image, size: int, *, to_square: bool) -> Unpacked:
    turn = _turn_of(image)
    upright = to_rgb(image if turn is None else image.transpose(turn))
    pixels_HWC = _pixels(upright, size, to_square=to_square)
    return Unpacked(pixels_HWC=pixels_HWC, width=upright.width, height=upright.height)


def _pixels(rgb: Image.Image, size: int, *, to_square: bool) -> Pixels:
    if to_square or min(rgb.size) < size or rgb.width * rgb.height > _RESIZER_PIXELS:
        rgb = rgb.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(rgb)


def to_rgb(image: Image.Image) -> Image.Image:
    """Make the RGB picture that a viewer would show: transparency on white, deep grey scaled, not clipped."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scale_grey(image)
    if image.has_transparency_data:
        colour = image.info.get("transparency")
        if isinstance(colour, tuple) and max(colour) > 255:  # of 16 bits, where Pillow keeps the upper 8 of each pixel
            image.info["transparency"] = tuple(value >> 8 for value in colour)
        layers = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """Load a picture and say how to turn it; damaged EXIF says nothing, the picture is good all the same."""
    image.load()
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, struct.error):
        return None


def _scale_grey(image: Image.Image) -> Image.Image:
    """Map 16-bit values by their full range and float values by the range they use, 0..1 taken as it is.

    A value that means transparency becomes white.
    """
    values = np.asarray(image, dtype=np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    span = (high - low) or 1.0
    shown = ((values - low) / span * 255 + 0.5).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        shown[values == transparent] = 255
    return Image.fromarray(shown).convert("RGB")


class _OwnLimits:
    """While any thread decodes, our pixel limit stands in place of Pillow's, and Pillow's warnings are silent.

    Both are settings of the whole process: the first thread to come changes them, the last to go puts them back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.num_threads = 0

    @contextmanager
    def __call__(self, max_pixels: int) -> Iterator[None]:
        with self.lock:
            if self.num_threads == 0:
                self.warnings, self.limit = warnings.catch_warnings(), Image.MAX_IMAGE_PIXELS
                self.warnings.__enter__()
                warnings.simplefilter("ignore")
            self.num_threads += 1
            Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
        try:
            yield
        finally:
            with self.lock:
                self.num_threads -= 1
                if self.num_threads == 0:
                    Image.MAX_IMAGE_PIXELS = self.limit
                    self.warnings.__exit__(None, None, None)


_own_limits = _OwnLimits()


def _check_size(image: Image.Image, options: DecodeOptions) -> None:
    pixels = image.width * image.height
    if pixels > options.max_pixels:
        raise ImageError("too_large", f"{image.width}x{image.height} is more than {options.max_pixels:,} pixels")
    if pixels == 0:
        raise ImageError("corrupt", f"{image.width}x{image.height} has no pixels")
