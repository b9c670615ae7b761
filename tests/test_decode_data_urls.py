"""Images as data URLs: files that are sent as they are, and those that are not."""

from __future__ import annotations

import base64
import io
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip2cap.decode.data_urls import DataUrlInput
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def file_of(image: Image.Image, image_format: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **settings)
    return file.getvalue()


def decoded(data: bytes, max_pixels: int = 10_000, *, isolated: bool = False) -> tuple[str, bytes, tuple[int, int]]:
    """Return the type of the data URL, its bytes, and the size of the image as a viewer shows it."""
    with closing(DataUrlInput(max_pixels).open(DecodeOptions())) as decoder:
        found = decoder.decode(data, isolated=isolated)
    head, content = found.content.decode().split(",")
    return head, base64.b64decode(content, validate=True), (found.width, found.height)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_files_that_fit_are_sent_as_they_are(image_format):
    data = file_of(Image.fromarray(PIXELS), image_format)
    assert decoded(data) == (f"data:image/{image_format.lower()};base64", data, (40, 30))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def with_late_orientation() -> bytes:
    """Return a PNG file whose orientation comes after its pixels."""
    data = file_of(Image.fromarray(PIXELS), "PNG", exif=turned())
    at = data.index(b"eXIf") - 4
    length = int.from_bytes(data[at : at + 4], "big") + 12
    chunk, rest = data[at : at + length], data[:at] + data[at + length :]
    end = rest.index(b"IEND") - 4
    return rest[:end] + chunk + rest[end:]


OTHERS = {
    "turned": (file_of(Image.fromarray(PIXELS), "JPEG", exif=turned()), (30, 40)),
    "turned at the end": (with_late_orientation(), (30, 40)),
    "transparent": (file_of(Image.fromarray(PIXELS).convert("RGBA"), "PNG"), (40, 30)),
    "transparent colour": (file_of(Image.fromarray(PIXELS), "PNG", transparency=(1, 2, 3)), (40, 30)),
    "grey": (file_of(Image.fromarray(PIXELS).convert("L"), "PNG"), (40, 30)),
    "CMYK": (file_of(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"), (40, 30)),
    "WebP": (file_of(Image.fromarray(PIXELS), "WEBP"), (40, 30)),
    "another format": (file_of(Image.fromarray(PIXELS), "BMP"), (40, 30)),
    "several frames": (
        file_of(Image.fromarray(PIXELS), "WEBP", save_all=True, append_images=[Image.fromarray(PIXELS[::-1])]),
        (40, 30),
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_all_others_become_upright_jpegs(kind):
    data, size = OTHERS[kind]
    head, sent, shown = decoded(data)
    with Image.open(io.BytesIO(sent)) as image:
        assert (head, image.format, image.mode, image.size) == ("data:image/jpeg;base64", "JPEG", "RGB", size)
    assert shown == size


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_larger_ones_are_made_smaller_and_rows_have_the_size_of_the_file(image_format):
    _, sent, shown = decoded(file_of(Image.fromarray(PIXELS), image_format), 300)
    with Image.open(io.BytesIO(sent)) as image:
        assert (image.size, shown) == ((20, 15), (40, 30))


@pytest.mark.parametrize("data", [file_of(Image.fromarray(PIXELS), "PNG"), OTHERS["turned"][0], OTHERS["grey"][0]])
def test_the_same_is_sent_if_the_header_and_the_pixels_are_read_in_a_separate_process(data):
    assert decoded(data, isolated=True) == decoded(data)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (file_of(Image.fromarray(PIXELS), "JPEG")[:-200], "truncated"),
        (file_of(Image.fromarray(PIXELS), "PNG")[:-200], "truncated"),
        (file_of(Image.fromarray(PIXELS), "WEBP")[:-200], "truncated"),
        (b"", "truncated"),
        (b"no image at all", "not_an_image"),
    ],
)
def test_damaged_files_are_not_sent(data, code):
    with pytest.raises(ImageError) as caught:
        decoded(data)
    assert caught.value.code == code


def test_an_open_image_becomes_a_jpeg():
    with closing(DataUrlInput(300).open(DecodeOptions())) as decoder:
        found = decoder.convert(Image.fromarray(PIXELS))
    assert found.content.startswith(b"data:image/jpeg;base64,")
    assert (found.width, found.height) == (40, 30)
