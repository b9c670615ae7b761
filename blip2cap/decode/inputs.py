"""The form in which a model family takes images: RGB pixels, a square or of any size, or the bytes of the file.

A family names its form as an `ImageInput`; a run opens it once and decodes its images with it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from blip2cap.decode.failures import our_errors
from blip2cap.decode.image import Decoded, Resizer, decode, read_header, resize, upright_rgb
from blip2cap.decode.isolate import Isolation
from blip2cap.decode.resized import convert_within, decode_within
from blip2cap.options import DecodeOptions


class ImageDecoder(Protocol):
    """Decodes the images of one run, in many threads at once; to be closed."""

    def decode(self, data: bytes, *, isolated: bool, read_s: float = 0.0) -> Decoded:
        """Decode the bytes of an image file, if `isolated` in a separate process. Raises ImageError.

        `read_s` is the time that reading took: it counts towards the time limit of an isolated image.
        """

    def convert(self, image: Image.Image) -> Decoded:
        """Convert an open Pillow image. Raises ImageError: its file may not be read yet."""

    def close(self) -> None:
        """End the processes; images in flight fail."""


class ImageInput(Protocol):
    """The form in which a model family takes images."""

    def open(self, options: DecodeOptions) -> ImageDecoder:
        """Return a decoder for one run."""


@dataclass(frozen=True, slots=True)
class SquareInput:
    """RGB pixels, uint8 [size, size, 3]."""

    size: int
    choose_resizer: Callable[[], Resizer | None] = lambda: None
    """Returns a faster resizer than Pillow's if there is one; called when a decoder is opened."""

    def open(self, options: DecodeOptions) -> ImageDecoder:
        """Return a decoder for one run."""
        return _SquareDecoder(self.size, self.choose_resizer(), options)


class _SquareDecoder:
    def __init__(self, size: int, resizer: Resizer | None, options: DecodeOptions) -> None:
        self.size, self.resizer, self.options = size, resizer, options
        self.isolation = Isolation(options, size, resizer)

    def decode(self, data: bytes, *, isolated: bool, read_s: float = 0.0) -> Decoded:
        if isolated:
            return self.isolation.decode(data, read_s=read_s)
        return decode(data, self.size, self.options, self.resizer)

    def convert(self, image: Image.Image) -> Decoded:
        return resize(image, self.size)

    def close(self) -> None:
        self.isolation.close()


@dataclass(frozen=True, slots=True)
class ResizedInput:
    """RGB pixels, uint8 [H, W, 3], of at most `max_pixels`: smaller than the image if that has more, never larger."""

    max_pixels: int

    def open(self, options: DecodeOptions) -> ImageDecoder:
        """Return a decoder for one run."""
        return _ResizedDecoder(self.max_pixels, options)


class _ResizedDecoder:
    def __init__(self, max_pixels: int, options: DecodeOptions) -> None:
        self.max_pixels, self.options = max_pixels, options
        self.isolation = Isolation(options, 0, None)

    def decode(self, data: bytes, *, isolated: bool, read_s: float = 0.0) -> Decoded:
        if isolated:
            return self.isolation.decode_within(data, self.max_pixels, read_s=read_s)
        return decode_within(data, self.max_pixels, self.options)

    def convert(self, image: Image.Image) -> Decoded:
        return convert_within(image, self.max_pixels)

    def close(self) -> None:
        self.isolation.close()


@dataclass(frozen=True, slots=True)
class BytesInput:
    """The bytes of the file, of which only the header is checked; an open image as PNG."""

    def open(self, options: DecodeOptions) -> ImageDecoder:
        """Return a decoder for one run."""
        return _BytesDecoder(options)


class _BytesDecoder:
    def __init__(self, options: DecodeOptions) -> None:
        self.options = options
        self.isolation = Isolation(options, 0, None)

    def decode(self, data: bytes, *, isolated: bool, read_s: float = 0.0) -> Decoded:
        header = self.isolation.read_header(data, read_s=read_s) if isolated else read_header(data, self.options)
        return Decoded(content=data, width=header.width, height=header.height)

    def convert(self, image: Image.Image) -> Decoded:
        with our_errors(b""):
            rgb = upright_rgb(image)
        file = io.BytesIO()
        rgb.save(file, "PNG")
        return Decoded(content=file.getvalue(), width=rgb.width, height=rgb.height)

    def close(self) -> None:
        self.isolation.close()
