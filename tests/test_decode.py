import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from blip2cap.decode.formats import FORMATS
from blip2cap.decode.image import resize
from tests.pictures import encode, open_up, photo

PLAIN_FILES: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 90},
    "JPEG progressive": {"quality": 75, "progressive": True, "subsampling": 2},
    "PNG": {},
    "WEBP": {"quality": 80},
    "WEBP lossless": {"lossless": True},
}

STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how a camera that writes it has turned the upright picture."""


@pytest.fixture(scope="module")
def processor():
    """The image processor of transformers for BLIP-2, without the scaling of its numbers."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    return BlipImageProcessorPil()


@pytest.mark.parametrize("size", [112, 224])
@pytest.mark.parametrize("name", PLAIN_FILES)
@pytest.mark.parametrize("shape", [(320, 240), (97, 211), (50, 40), (224, 224)])
def test_plain_rgb_equals_transformers_bit_for_bit(processor, name, size, shape):
    data = encode(photo(*shape), name.split()[0], **PLAIN_FILES[name])
    with Image.open(io.BytesIO(data)) as image:
        batch = processor(
            image,
            size={"height": size, "width": size},
            do_rescale=False,
            do_normalize=False,
            return_tensors="np",
        )
    expected_HWC = np.moveaxis(batch["pixel_values"][0], 0, -1)
    decoded = open_up(data, size)
    assert decoded.pixels_HWC.dtype == np.uint8
    assert decoded.pixels_HWC.shape == (size, size, 3)
    assert (decoded.pixels_HWC == expected_HWC).all()
    assert (decoded.width, decoded.height) == shape


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_that_is_read_shows_its_picture(name):
    image = photo(64, 48)
    data = encode(image.quantize(256) if name == "GIF" else image, name)
    decoded = open_up(data, 16)
    expected_HWC = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC), dtype=np.int64)
    assert abs(decoded.pixels_HWC - expected_HWC).mean() < 8
    assert (decoded.width, decoded.height) == (64, 48)


def test_an_image_of_one_pixel_fills_the_square():
    decoded = open_up(encode(photo(1, 1), "PNG"), 8)
    assert len(np.unique(decoded.pixels_HWC.reshape(-1, 3), axis=0)) == 1
    assert (decoded.width, decoded.height) == (1, 1)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied_and_the_size_is_as_displayed(orientation, format):
    upright = photo(40, 20)
    turn = STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    decoded = open_up(encode(stored, format, exif=exif, **({"lossless": True} if format == "WEBP" else {})))
    assert (decoded.width, decoded.height) == (40, 20)
    assert (decoded.pixels_HWC == open_up(encode(upright, "PNG")).pixels_HWC).all()


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_means_what_pillow_takes_it_for(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(photo(40, 20), "JPEG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = resize(ImageOps.exif_transpose(image), 16)
    decoded = open_up(data)
    assert (decoded.pixels_HWC == expected.pixels_HWC).all()
    assert (decoded.width, decoded.height) == (expected.width, expected.height)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x05\0\0\0abcd",
    ],
    ids=["empty", "no header", "points nowhere", "orientation 99", "orientation is text"],
)
def test_damaged_exif_does_not_spoil_a_good_picture(format, exif):
    image = photo()
    decoded = open_up(encode(image, format, exif=exif))
    assert (decoded.width, decoded.height) == image.size
    assert (decoded.pixels_HWC == open_up(encode(image, format)).pixels_HWC).all()


def test_pixels_are_writable_and_in_one_piece():
    pixels_HWC = open_up(encode(photo(), "JPEG")).pixels_HWC
    assert pixels_HWC.flags.writeable
    assert pixels_HWC.flags.c_contiguous
