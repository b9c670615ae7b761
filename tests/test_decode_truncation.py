"""A truncated file is told from a damaged one, wherever it is truncated."""

from __future__ import annotations

import pytest
from PIL import ExifTags, Image

from blip2cap.decode.truncation import is_truncated
from blip2cap.errors import ImageError
from tests.pictures import encode, open_up, photo


def with_preview() -> bytes:
    """Make a JPEG that has another one in its header, which has an end of its own."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 300
    return encode(photo(), "JPEG", exif=exif.tobytes() + encode(photo(16, 12), "JPEG"))


FILES = {
    "JPEG": lambda: encode(photo(), "JPEG"),
    "JPEG progressive": lambda: encode(photo(), "JPEG", progressive=True),
    "JPEG with a preview": with_preview,
    "PNG": lambda: encode(photo(), "PNG"),
    "WEBP": lambda: encode(photo(), "WEBP"),
    "WEBP lossless": lambda: encode(photo(), "WEBP", lossless=True),
    "GIF": lambda: encode(photo().quantize(256), "GIF"),
    "BMP": lambda: encode(photo(), "BMP"),
    "TIFF": lambda: encode(photo(), "TIFF"),
    "TIFF with lzw": lambda: encode(photo(), "TIFF", compression="tiff_lzw"),
    "AVIF": lambda: encode(photo(), "AVIF"),
    "JPEG2000": lambda: encode(photo(), "JPEG2000"),
    "JPEG2000 without a box": lambda: encode(photo(), "JPEG2000", no_jp2=True),
}


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_is_not_cut(name: str) -> None:
    assert not is_truncated(FILES[name]())


@pytest.mark.parametrize("name", FILES)
def test_wherever_a_file_breaks_off_it_is_truncated_or_all_pixels_are_there(name: str) -> None:
    """From its twentieth byte on; less may be of many formats."""
    data = FILES[name]()
    whole = open_up(data)
    for length in (*range(20, 700, 7), *range(700, len(data), len(data) // 30 + 1)):
        try:
            decoded = open_up(data[:length])
        except ImageError as error:
            code = error.code
        else:
            code = "whole" if (decoded.pixels_HWC == whole.pixels_HWC).all() else "wrong"
        expected = {"truncated"}
        if name == "BMP" and length < 54:
            expected.add("not_an_image")  # two letters are no proof
        if len(data) - length < 20:
            expected.add("whole")  # only what follows the pixels is missing
        assert code in expected, length


@pytest.mark.parametrize(
    "data", [b"", b"BM", b"\xff\xd8\xff", b"no picture at all", b"\0" * 99, b"RIFF\xff\xff\xff\xffWAVE"]
)
def test_what_is_no_picture_is_not_a_part_of_one(data: bytes) -> None:
    assert not is_truncated(data)


def test_damage_is_no_cut() -> None:
    for name in ("JPEG", "PNG", "WEBP", "JPEG2000", "AVIF"):
        data = bytearray(FILES[name]())
        middle = len(data) // 2
        data[middle : middle + 50] = b"\x5a" * 50
        assert not is_truncated(bytes(data)), name


def test_zeros_after_the_end_do_not_matter() -> None:
    for name in ("JPEG", "PNG", "GIF", "JPEG2000 without a box"):
        assert not is_truncated(FILES[name]() + b"\0" * 100), name
