"""Image files as people have them -> RGB uint8 pixels at the model's size.

For plain RGB files the pixels equal those of transformers' Pillow image processor bit for bit: bicubic, resized to a
square without keeping the aspect ratio. Other files are first converted to the RGB image that a viewer would show. The
one exception is a large JPEG, which libjpeg decodes at a reduced size unless the options say `exact`.

Covered: EXIF orientation, transparency (on white), palettes, CMYK, 16-bit and float greyscale, the first frame of
animations. HEIC needs the extra `heif`.
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
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile

from blip2cap.decode.failures import our_errors
from blip2cap.decode.formats import formats
from blip2cap.decode.pixel_view import view_pixels
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
"""EXIF orientation -> transposition that makes the image upright."""

SIDEWAYS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}
"""Transpositions that swap width and height."""

MARGIN = 2
"""A JPEG decoded at a reduced size is at least this many times the model's size, in width and in height."""

_RESIZER_PIXELS = 50_000_000
"""Larger images are resized by Pillow: another resizer would need a copy of all pixels."""

Pixels = npt.NDArray[np.uint8]
Resizer = Callable[[Pixels, int], Pixels]
"""RGB, [H, W, 3] or with a fourth channel to be dropped, and a size -> RGB [size, size, 3], bicubic."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """One image as the model takes it."""

    content: Any
    """Input of the model: pixels (uint8 RGB [H, W, 3]), or the bytes of the file; any contiguous buffer."""
    width: int
    """Width of the image as displayed, in pixels."""
    height: int
    digest: bytes = field(init=False, repr=False)
    """Hash of the content and its shape: equal images have equal digests."""

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.content)
        digest.update(repr(getattr(self.content, "shape", None)).encode())
        object.__setattr__(self, "digest", digest.digest()[:16])

    @property
    def pixels_HWC(self) -> Pixels:  # noqa: N802  the suffix names the axes
        """Content as pixels."""
        pixels_HWC: Pixels = self.content
        return pixels_HWC


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    """One image after the steps that need Pillow; it may still have to be resized."""

    pixels_HWC: Pixels
    """uint8 RGB, upright; a fourth channel is to be dropped; [0, 0, 3] if only the header was read."""
    width: int
    """Width of the image as displayed, in pixels."""
    height: int


def decode(data: bytes, size: int, options: DecodeOptions, resizer: Resizer | None = None) -> Decoded:
    """Decode the bytes of an image file to `size` x `size` RGB. Raises ImageError.

    `resizer` makes images smaller faster than Pillow, with pixels that may differ by a level or two; exact mode does
    not use it.
    """
    return finish(unpack(data, size, options, to_square=resizer is None), size, resizer)


def unpack(data: bytes, size: int, options: DecodeOptions, *, to_square: bool) -> Unpacked:
    """Do the part of decode() that handles untrusted data; finish() does the rest. Raises ImageError.

    With `to_square` the image is always resized here; else only in exact mode, or where Pillow does it better.
    """
    to_square = to_square or options.mode == "exact"
    with opened(data, options) as image:
        if image.format in ("JPEG", "MPO"):
            # In one block: each block, of 64 KiB by default, would acquire the interpreter's lock again.
            image.decodermaxblock = len(data)
            if options.mode == "fast":
                return _unpack_reduced(image, size, to_square=to_square)
        return _unpack(image, size, to_square=to_square)


def read_header(data: bytes, options: DecodeOptions) -> Unpacked:
    """Read the size of an image, and no pixels. Raises ImageError.

    An orientation that the file holds after its pixels, as some PNG files do, is not seen.
    """
    with opened(data, options) as image:
        width, height = image.size
        if image.format != "TIFF" and transposition(image) in SIDEWAYS:  # Pillow turns TIFF files by itself
            width, height = height, width
        return Unpacked(pixels_HWC=np.empty((0, 0, 3), dtype=np.uint8), width=width, height=height)


def read_format(data: bytes, options: DecodeOptions) -> str:
    """Return Pillow's name of the format of an image. Raises ImageError."""
    with opened(data, options) as image:
        return image.format or ""


@contextmanager
def opened(data: bytes, options: DecodeOptions) -> Iterator[ImageFile.ImageFile]:
    """Open an image and check its size; errors in the block become ImageError."""
    with (
        our_errors(data),
        _own_limits(options.max_pixels),
        Image.open(io.BytesIO(data), formats=formats()) as image,
    ):
        if image.width * image.height > options.max_pixels:
            raise ImageError("too_large", f"{image.width}x{image.height} is more than {options.max_pixels:,} pixels")
        if image.width * image.height == 0:
            raise ImageError("corrupt", f"{image.width}x{image.height} has no pixels")
        yield image


def finish(image: Unpacked, size: int, resizer: Resizer | None) -> Decoded:
    """Resize to the square if unpack() has not done it."""
    if image.pixels_HWC.shape[:2] == (size, size):
        pixels_HWC = np.ascontiguousarray(image.pixels_HWC[:, :, :3])
    else:
        assert resizer is not None, "without a resizer, unpack() returns the square"
        pixels_HWC = resizer(image.pixels_HWC, size)
    return Decoded(content=pixels_HWC, width=image.width, height=image.height)


def resize(image: Image.Image, size: int) -> Decoded:
    """Convert an open Pillow image to `size` x `size` RGB, upright. Raises ImageError: its file may not be read yet."""
    with our_errors(b""):
        return finish(_unpack(image, size, to_square=True), size, None)


def _unpack_reduced(image: ImageFile.ImageFile, size: int, *, to_square: bool) -> Unpacked:
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size; one that would become too small is decoded in full."""
    width, height = image.size
    _, box = image.draft(None, (MARGIN * size, MARGIN * size)) or ("", None)
    if image.size == (width, height):
        return _unpack(image, size, to_square=to_square)
    image.load()
    turn = transposition(image)
    rgb = to_rgb(image)
    if turn in SIDEWAYS:
        width, height = height, width
    if box == (0, 0, *image.size):
        upright = rgb if turn is None else rgb.transpose(turn)
        return Unpacked(pixels_HWC=_pixels(upright, size, to_square=to_square), width=width, height=height)
    # If the size is no multiple of the factor, the last column and row reach beyond the image: the box cuts that off.
    small = rgb.resize((size, size), Image.Resampling.BICUBIC, box)
    if turn is not None:
        small = small.transpose(turn)
    return Unpacked(pixels_HWC=np.array(small), width=width, height=height)


def _unpack(image: Image.Image, size: int, *, to_square: bool) -> Unpacked:
    rgb = upright_rgb(image)
    return Unpacked(pixels_HWC=_pixels(rgb, size, to_square=to_square), width=rgb.width, height=rgb.height)


def _pixels(rgb: Image.Image, size: int, *, to_square: bool) -> Pixels:
    if to_square or min(rgb.size) < size or rgb.width * rgb.height > _RESIZER_PIXELS:
        return np.array(rgb.resize((size, size), Image.Resampling.BICUBIC))
    return view_pixels(rgb)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return the RGB image that a viewer would show, turned upright."""
    image.load()  # the orientation may come after the pixels
    turn = transposition(image)
    return to_rgb(image if turn is None else image.transpose(turn))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to the RGB that a viewer would show: transparency on white; 16-bit greyscale is scaled, not clipped."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scale_grey(image)
    if image.has_transparency_data:
        colour = image.info.get("transparency")
        if isinstance(colour, tuple) and max(colour) > 255:  # 16 bits, while Pillow keeps the upper 8 of each pixel
            image.info["transparency"] = tuple(value >> 8 for value in colour)
        layers = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def transposition(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that makes an image upright; damaged EXIF data is ignored."""
    try:
        # Not image.getexif(): that of PNG would decode the pixels.
        return _TURNS.get(Image.Image.getexif(image).get(ExifTags.Base.Orientation))
    except (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, struct.error):
        return None


def _scale_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit values by their full range, and float values by the range that they use unless that is within 0..1.

    The transparent value, if there is one, becomes white.
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
    """Raises Pillow's pixel limit to ours and silences its warnings, while any thread decodes.

    Both are settings of the whole process: the first thread to enter changes them, the last to leave restores them.
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
