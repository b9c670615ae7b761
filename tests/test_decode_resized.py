"""Images of any size within a number of pixels: aspect ratio, pixels, and decoding in separate processes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, nullcontext

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from blip2cap.decode import isolate
from blip2cap.decode.image import Decoded
from blip2cap.decode.inputs import ImageDecoder, ResizedInput, SquareInput
from blip2cap.decode.isolate import Isolation
from blip2cap.decode.resized import size_within
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions
from tests import crashing
from tests.pictures import encode, photo

MAX_PIXELS = 1000
OPTIONS = DecodeOptions(max_pixels=1_000_000)


@pytest.fixture(scope="module")
def within() -> Iterator[ImageDecoder]:
    with closing(ResizedInput(MAX_PIXELS).open(OPTIONS)) as decoder:
        yield decoder


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(image, "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((20, 10), (20, 10)),
        ((40, 25), (40, 25)),  # exactly as many
        ((400, 100), (63, 15)),
        ((100, 400), (15, 63)),
        ((1920, 1080), (42, 23)),
        ((5000, 1), (1000, 1)),
        ((1, 5000), (1, 1000)),
    ],
)
def test_an_image_keeps_its_aspect_ratio_within_the_pixels_and_is_never_enlarged(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert size_within(*size, MAX_PIXELS) == expected


def test_sizes_of_all_shapes_are_within_the_pixels() -> None:
    for width in (1, 2, 3, 17, 31, 32, 100, 999, 65_000):
        for height in (1, 2, 3, 17, 31, 32, 100, 999, 65_000):
            for most in (1, 2, 7, 100, MAX_PIXELS, 10**6):
                columns, rows = size_within(width, height, most)
                assert 1 <= columns <= width
                assert 1 <= rows <= height
                assert columns * rows <= most
                assert size_within(height, width, most) == (rows, columns)


@pytest.mark.parametrize("isolated", [False, True])
def test_pixels_are_those_of_pillows_bicubic_filter_upright_and_contiguous(
    within: ImageDecoder, isolated: bool
) -> None:
    large, small = photo(80, 60), photo(30, 20)
    for image, size in ((large, (36, 27)), (small, (30, 20)), (photo(40, 90), (21, 47))):
        decoded = within.decode(encode(image, "PNG"), isolated=isolated)
        expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        assert decoded.content.dtype == np.uint8
        assert decoded.content.flags.c_contiguous
        assert decoded.content.flags.writeable
        assert decoded.content.shape == (*size[::-1], 3)
        assert (decoded.content == expected).all()
        assert (decoded.width, decoded.height) == image.size


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("size", [(80, 60), (641, 483)], ids=["small", "of which a part is decoded"])
def test_images_are_turned_upright(
    within: ImageDecoder, size: tuple[int, int], orientation: int, isolated: bool
) -> None:
    image = photo(*size)
    decoded = within.decode(turned(image, orientation), isolated=isolated)
    upright = within.decode(encode(upside(image, orientation), "JPEG"), isolated=False)
    assert (decoded.width, decoded.height) == (upright.width, upright.height)
    assert decoded.content.shape == upright.content.shape
    assert np.abs(decoded.content.astype(int) - upright.content).mean() < 4


def upside(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image as a viewer shows it if its file has this orientation."""
    with Image.open(io.BytesIO(turned(image, orientation))) as read:
        turn = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_270,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90,
        }[orientation]
        return read.transpose(turn)


def test_a_large_jpeg_is_decoded_at_a_reduced_size_unless_exact_mode_is_asked_for(
    within: ImageDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photo(641, 483)
    data, sizes = encode(image, "JPEG"), []
    load = ImageFile.ImageFile.load

    def watch(self: ImageFile.ImageFile) -> object:
        sizes.append(self.size)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watch)
    fast = within.decode(data, isolated=False)
    with closing(ResizedInput(MAX_PIXELS).open(DecodeOptions(mode="exact"))) as decoder:
        exact = decoder.decode(data, isolated=False)
    assert {(81, 61), (641, 483)} == set(sizes)
    assert fast.content.shape == exact.content.shape == (27, 36, 3)
    assert (fast.width, fast.height) == (exact.width, exact.height) == (641, 483)
    with Image.open(io.BytesIO(data)) as opened:
        assert (exact.content == np.asarray(opened.resize((36, 27), Image.Resampling.BICUBIC))).all()
    assert 0 < np.abs(fast.content.astype(int) - exact.content).mean() < 4


@pytest.mark.parametrize("isolated", [False, True])
def test_what_is_wrong_with_an_image_is_said_as_for_a_square(within: ImageDecoder, isolated: bool) -> None:
    with closing(SquareInput(8).open(OPTIONS)) as square:
        for data in (
            b"",
            b"this is no image",
            encode(photo(), "PNG")[:2000],
            encode(Image.new("1", (2000, 2000)), "PNG"),
        ):
            said = []
            for decoder, alone in ((within, isolated), (square, False)):
                with pytest.raises(ImageError) as caught:
                    decoder.decode(data, isolated=alone)
                said.append(str(caught.value))
            assert said[0] == said[1]


def test_an_open_image_becomes_the_same_pixels(within: ImageDecoder) -> None:
    assert within.convert(photo()).digest == within.decode(encode(photo(), "PNG"), isolated=False).digest
    with Image.open(io.BytesIO(turned(photo(80, 60), 6))) as image:
        converted = within.convert(image)
    assert (converted.width, converted.height, converted.content.shape) == (60, 80, (36, 27, 3))
    with Image.open(io.BytesIO(encode(photo(200, 200), "PNG")[:3000])) as image, pytest.raises(ImageError):
        within.convert(image)


def test_images_of_other_shape_with_equal_bytes_have_other_digests() -> None:
    pixels_HWC = np.zeros((6, 4, 3), dtype=np.uint8)
    digests = {
        Decoded(content=content, width=1, height=1).digest
        for content in (pixels_HWC, pixels_HWC.reshape(4, 6, 3), pixels_HWC.reshape(8, 3, 3), pixels_HWC.tobytes())
    }
    assert len(digests) == 4
    assert Decoded(content=pixels_HWC.copy(), width=9, height=9).digest in digests


ANSWER = {"width": 90, "height": 70, "shape": [27, 35, 3]}


@pytest.mark.parametrize(
    ("answer", "is_good"),
    [
        ({}, True),
        ({"width": 30, "height": 20, "shape": [20, 30, 3]}, True),
        ({"shape": [35, 27, 3]}, False),
        ({"shape": [27, 36, 3]}, False),
        ({"shape": [70, 90, 3]}, False),
        ({"shape": [27, 35, 4]}, False),
        ({"shape": [27, 35]}, False),
        ({"shape": None}, False),
        ({"shape": [27.0, 35, 3]}, False),
        ({"width": True}, False),
        ({"height": 0}, False),
        ({"width": 1001, "height": 1000}, False),
    ],
)
def test_a_worker_is_believed_only_the_shape_that_follows_from_the_size(
    answer: dict[str, object], is_good: bool
) -> None:
    with nullcontext() if is_good else pytest.raises((ValueError, TypeError)):
        isolate._sizes_within(ANSWER | answer, MAX_PIXELS, 1_000_000)


@pytest.mark.long
def test_a_worker_that_was_taken_over_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "PROGRAM", crashing.PROGRAM)
    monkeypatch.setattr(isolate, "_LEAST_S", 0.2)
    with closing(Isolation(DecodeOptions(timeout_s=60), 0, None)) as isolation:
        for width in crashing.ANSWERS:
            with pytest.raises(ImageError, match="decoder_crashed: the process that decoded it sent no valid response"):
                isolation.decode_within(crashing.picture(width), MAX_PIXELS)
        assert isolation.decode_within(encode(photo(), "PNG"), MAX_PIXELS).content.shape == (27, 36, 3)
