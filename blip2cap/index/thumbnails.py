"""Images -> small JPEGs for a page, read and decoded as a run does: same limits, same errors, same time limit."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from PIL import Image

from blip2cap.decode.image import Decoded
from blip2cap.decode.inputs import ImageDecoder, SquareInput
from blip2cap.decode.read import read
from blip2cap.engine.read_ahead import DecodeAhead
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef

SIZE = 320
"""Longest side of a thumbnail, in pixels: 160 CSS pixels on a screen with two device pixels for each."""
_QUALITY = 78
_NUM_AHEAD = 64
"""Number of thumbnails in memory, at about 15 KB each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thumbnail:
    """One image of a page."""

    jpeg: bytes
    width: int
    """Width in pixels, 1 to `SIZE`; the aspect ratio is that of the image as displayed."""
    height: int


def make_thumbnails(refs: Iterable[ImageRef], options: DecodeOptions) -> Iterator[Thumbnail | ImageError]:
    """Yield the thumbnail of each image, in order, or the reason why there is none. A server that is down is a reason.

    Raises UsageError if no process can be started to decode in.
    """
    with closing(SquareInput(SIZE).open(options)) as decoder:
        ahead = DecodeAhead(
            refs,
            lambda ref: ref,
            lambda ref: _make(ref, decoder, options),
            num_threads=options.threads,
            num_ahead=_NUM_AHEAD,
            timeout_s=options.timeout_s,
        )
        with closing(ahead):
            for found in ahead.results():
                if found is not None:
                    made = found[1]
                    if isinstance(made, ImageError):
                        yield made
                    else:
                        yield Thumbnail(jpeg=made.content, width=made.width, height=made.height)


def _make(ref: ImageRef, decoder: ImageDecoder, options: DecodeOptions) -> Decoded:
    """Return a JPEG with its own size. The decoder returns a square, which is stretched back to the aspect ratio."""
    started = time.monotonic()
    data = read(ref, options)
    image = decoder.decode(data, isolated=options.isolate, read_s=time.monotonic() - started)
    scale = min(1.0, SIZE / max(image.width, image.height))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = Image.fromarray(image.pixels_HWC).resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY)
    return Decoded(content=file.getvalue(), width=size[0], height=size[1])
