"""The two forms in which model families take images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from blip2cap.decode.image import Pixels, decode, resize
from blip2cap.decode.inputs import BytesInput, ImageDecoder, ImageInput, SquareInput
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions
from tests.pictures import encode, photo

SIZE = 32
OPTIONS = DecodeOptions(max_pixels=1_000_000)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")
TURNED = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


def turned(format: str, orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(photo(80, 60), format, exif=exif)


@pytest.fixture(scope="module")
def of_bytes() -> Iterator[ImageDecoder]:
    with closing(BytesInput().open(OPTIONS)) as decoder:
        yield decoder


def half_black(pixels_HWC: Pixels, size: int) -> Pixels:
    """A resizer that is easy to recognise."""
    square_HWC = np.zeros((size, size, 3), dtype=np.uint8)
    square_HWC[: size // 2] = pixels_HWC[0, 0, :3]
    return square_HWC


@pytest.mark.parametrize("isolated", [False, True])
def test_a_square_is_decoded_by_the_resizer_that_is_chosen_when_a_run_begins(isolated):
    chosen: list[str] = []

    def choose():
        chosen.append("once")
        return half_black

    form = SquareInput(SIZE, choose)
    assert not chosen
    data = encode(photo(80, 60), "JPEG")
    with closing(form.open(OPTIONS)) as decoder:
        for _ in range(2):
            decoded = decoder.decode(data, isolated=isolated)
            expected = decode(data, SIZE, OPTIONS, half_black)
            assert (decoded.content == expected.content).all()
            assert not decoded.content[SIZE // 2 :].any()
            assert (decoded.width, decoded.height, decoded.digest) == (80, 60, expected.digest)
    assert chosen == ["once"]


def test_without_a_resizer_a_square_is_made_by_pillow_also_of_an_open_image():
    with closing(SquareInput(SIZE).open(OPTIONS)) as decoder:
        decoded, converted = (
            decoder.decode(encode(photo(), "PNG"), isolated=False),
            decoder.convert(photo()),
        )
    assert (decoded.content == resize(photo(), SIZE).content).all()
    assert decoded.digest == converted.digest


@pytest.mark.parametrize("isolated", [False, True])
def test_bytes_are_those_of_the_file_with_the_size_of_the_image_as_displayed(of_bytes, isolated):
    files = {format: encode(photo(80, 60), format) for format in FORMATS}
    files |= {f"{format} turned by {turn}": turned(format, turn) for format in TURNED for turn in (2, 6)}
    digests = set()
    for name, data in files.items():
        decoded, expected = of_bytes.decode(data, isolated=isolated), decode(data, SIZE, OPTIONS)
        assert decoded.content is data
        assert (decoded.width, decoded.height) == (expected.width, expected.height), name
        assert expected.width == (60 if name.endswith("6") else 80), name
        digests.add(decoded.digest)
    assert len(digests) == len(files)


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "truncated"),
        (b"this is no image", "not_an_image"),
        (encode(photo(), "PNG")[:20], "truncated"),
        (encode(photo(), "JPEG")[:100], "truncated"),
        (encode(Image.new("1", (2000, 2000)), "PNG"), "too_large"),
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "large"],
)
def test_bytes_that_are_no_image_fail_with_the_error_of_a_decoder(of_bytes, data, code, isolated):
    for decode_it in (
        lambda: of_bytes.decode(data, isolated=isolated),
        lambda: decode(data, SIZE, OPTIONS),
    ):
        with pytest.raises(ImageError) as caught:
            decode_it()
        assert caught.value.code == code


@pytest.mark.parametrize("isolated", [False, True])
def test_of_bytes_only_the_header_is_read(of_bytes, isolated):
    png = encode(photo(400, 300), "PNG")
    assert of_bytes.decode(png[:5000], isolated=isolated).width == 400


def test_of_bytes_no_pixels_are_decoded(of_bytes, monkeypatch):
    files = [encode(photo(), "PNG"), *(turned(format) for format in TURNED)]

    def load(self):
        raise AssertionError("pixels are decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    for data in files:
        assert of_bytes.decode(data, isolated=False).content is data


def test_an_open_image_becomes_the_bytes_of_a_png_upright(of_bytes):
    with Image.open(io.BytesIO(turned("JPEG"))) as image:
        converted = of_bytes.convert(image)
        expected = image.transpose(Image.Transpose.ROTATE_270)
    assert (converted.width, converted.height) == (60, 80)
    with Image.open(io.BytesIO(converted.content)) as written:
        assert (np.asarray(written) == np.asarray(expected)).all()


@pytest.mark.parametrize("form", [SquareInput(SIZE), BytesInput()], ids=["square", "bytes"])
def test_an_open_image_of_a_damaged_file_is_an_image_error(form: ImageInput):
    with (
        closing(form.open(OPTIONS)) as decoder,
        Image.open(io.BytesIO(encode(photo(200, 200), "PNG")[:3000])) as image,
        pytest.raises(ImageError),
    ):
        decoder.convert(image)
