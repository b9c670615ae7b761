"""Images as data URLs for a server: files that fit are sent as they are, all others as JPEG.

A file fits if any decoder shows what a viewer shows: JPEG or PNG of one frame, RGB without transparency, upright, and
within the number of pixels. Not WebP: servers whose decoder is stb_image refuse it, or answer without the image.
"""

from __future__ import annotations

import binascii
import io
from dataclasses import dataclass

from PIL import Image, ImageFile

from blip2cap.decode.failures import our_errors
from blip2cap.decode.image import Decoded, opened, transposition
from blip2cap.decode.inputs import ImageDecoder
from blip2cap.decode.isolate import Isolation
from blip2cap.decode.resized import convert_within, decode_within
from blip2cap.decode.truncation import is_truncated
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions

_SENT_AS_THEY_ARE = ("JPEG", "PNG")
_QUALITY = 90
_ORIENTATION_IN_PNG = b"eXIf"
"""Chunk with an orientation, which may come after the pixels, where reading the header does not see it."""


@dataclass(frozen=True, slots=True)
class DataUrlInput:
    """Images as data URLs, ASCII bytes, of at most `max_pixels`."""

    max_pixels: int

    def open(self, options: DecodeOptions) -> ImageDecoder:
        """Return a decoder for one run."""
        return _DataUrlDecoder(self.max_pixels, options)


class _DataUrlDecoder:
    def __init__(self, max_pixels: int, options: DecodeOptions) -> None:
        self.max_pixels, self.options = max_pixels, options
        self.isolation = Isolation(options, 0, None)

    def decode(self, data: bytes, *, isolated: bool, read_s: float = 0.0) -> Decoded:
        if isolated:
            self.isolation.read_header(data, read_s=read_s)  # a file that crashes Pillow does so there
        with opened(data, self.options) as image:
            image_format, (width, height) = image.format or "", image.size
            fits = width * height <= self.max_pixels and _fits(image, data)
        if not fits and isolated:
            return _as_jpeg(self.isolation.decode_within(data, self.max_pixels, read_s=read_s))
        if not fits:
            return _as_jpeg(decode_within(data, self.max_pixels, self.options))
        if is_truncated(data):
            raise ImageError("truncated", "the file ends before its image does")
        return Decoded(content=data_url(data, image_format), width=width, height=height)

    def convert(self, image: Image.Image) -> Decoded:
        return _as_jpeg(convert_within(image, self.max_pixels))

    def close(self) -> None:
        self.isolation.close()


def data_url(data: bytes, image_format: str) -> bytes:
    """Return the bytes of an image file as a data URL; `image_format` is Pillow's name."""
    return b"data:image/%b;base64,%b" % (image_format.lower().encode(), binascii.b2a_base64(data, newline=False))


def _fits(image: ImageFile.ImageFile, data: bytes) -> bool:
    return (
        image.format in _SENT_AS_THEY_ARE
        and image.mode == "RGB"
        and not image.has_transparency_data
        and getattr(image, "n_frames", 1) == 1
        and transposition(image) is None
        and not (image.format == "PNG" and _ORIENTATION_IN_PNG in data)
    )


def _as_jpeg(image: Decoded) -> Decoded:
    """Encode pixels."""
    file = io.BytesIO()
    with our_errors(b""):
        Image.fromarray(image.pixels_HWC).save(file, "JPEG", quality=_QUALITY)
    return Decoded(content=data_url(file.getvalue(), "JPEG"), width=image.width, height=image.height)
