import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from blip2cap.decode.formats import formats
from tests.pictures import colour_of, encode, open_up, photo, plain

WHITE, BLACK, RED, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)


def grey(values: np.ndarray) -> Image.Image:
    """Make a grey picture whose pixels keep their places when it is decoded at 16."""
    assert values.shape == (16, 16)
    return Image.fromarray(values)


def brightness(data: bytes) -> np.ndarray:
    """Decode a grey picture of 16 x 16 as it is."""
    pixels_HWC = open_up(data, 16).pixels_HWC
    assert (pixels_HWC == pixels_HWC[:, :, :1]).all()
    return pixels_HWC[:, :, 0]


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_what_is_transparent_shows_white_not_its_hidden_colour(format):
    hidden = plain("RGBA", (*RED, 0))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert colour_of(open_up(encode(hidden, format, **options))) == WHITE


def test_what_is_half_transparent_is_mixed_with_white():
    assert colour_of(open_up(encode(plain("RGBA", (0, 0, 0, 128)), "PNG"))) == (127, 127, 127)
    assert colour_of(open_up(encode(plain("RGBA", (255, 0, 0, 51)), "PNG"))) == (255, 204, 204)


def test_what_is_opaque_keeps_its_colour():
    image = photo(16, 16)
    image.putalpha(255)
    assert (open_up(encode(image, "PNG")).pixels_HWC == np.asarray(photo(16, 16))).all()


def test_grey_with_transparency_is_composited_on_white():
    assert colour_of(open_up(encode(plain("LA", (0, 0)), "PNG"))) == WHITE
    assert colour_of(open_up(encode(plain("LA", (0, 255)), "PNG"))) == BLACK


@pytest.mark.parametrize(("mode", "format"), [("PA", "TIFF"), ("LA", "TIFF"), ("LA", "JPEG2000"), ("RGBA", "AVIF")])
def test_every_mode_with_transparency_is_composited_on_white(mode, format):
    image = Image.new("RGBA" if mode == "RGBA" else mode, (16, 16))
    assert colour_of(open_up(encode(image, format))) == WHITE


def png_with_a_transparent_colour(depth: int, kind: int, colour: bytes, row: bytes) -> bytes:
    """Make a PNG of two pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 2, 1, depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row)
    chunks = {b"IHDR": header, b"tRNS": colour, b"IDAT": pixels, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, content) for name, content in chunks.items())


@pytest.mark.parametrize(
    ("depth", "kind", "colour", "row"),
    [
        (1, 0, b"\0\0", b"\x40"),
        (4, 0, b"\0\0", b"\x04"),
        (8, 0, b"\0\x20", b"\x20\x40"),
        (16, 0, b"\x20\x21", b"\x20\x21\x20\x22"),
        (8, 2, b"\0\x20" * 3, b"\x20" * 3 + b"\x40" * 3),
        (16, 2, b"\x20\x21" * 3, b"\x20\x21" * 3 + b"\x40\x21" * 3),
    ],
    ids=["1 bit", "4 bits", "8 bits", "16 bits", "RGB", "RGB of 16 bits"],
)
def test_a_transparent_colour_shows_white_at_any_depth(depth, kind, colour, row):
    pixels_HWC = open_up(png_with_a_transparent_colour(depth, kind, colour, row), 2).pixels_HWC
    assert (pixels_HWC[:, 0] == WHITE).all()
    if depth > 1:  # of one bit, the other is white by itself
        assert (pixels_HWC[:, 1] != WHITE).all()


def two_colours() -> Image.Image:
    """A palette picture, the left half red, the right half blue."""
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (8, 0, 16, 16))
    return image


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"], ids=["one index", "a table"])
def test_a_transparent_index_of_a_palette_shows_white(transparency):
    pixels_HWC = open_up(encode(two_colours(), "PNG", transparency=transparency)).pixels_HWC
    assert (pixels_HWC[:, :8] == WHITE).all()
    assert (pixels_HWC[:, 8:] == BLUE).all()


def test_a_transparent_index_of_a_gif_shows_white():
    pixels_HWC = open_up(encode(two_colours(), "GIF", transparency=0)).pixels_HWC
    assert (pixels_HWC[:, :8] == WHITE).all()
    assert (pixels_HWC[:, 8:] == BLUE).all()


def test_a_transparent_colour_of_an_rgb_png_shows_white():
    image = Image.new("RGB", (16, 16), RED)
    image.paste(BLUE, (8, 0, 16, 16))
    pixels_HWC = open_up(encode(image, "PNG", transparency=RED)).pixels_HWC
    assert (pixels_HWC[:, :8] == WHITE).all()
    assert (pixels_HWC[:, 8:] == BLUE).all()


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_shows_its_colours(format):
    pixels_HWC = open_up(encode(two_colours(), format)).pixels_HWC
    assert (pixels_HWC[:, :8] == RED).all()
    assert (pixels_HWC[:, 8:] == BLUE).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM"])
def test_one_bit_is_black_and_white(format):
    image = Image.new("1", (16, 16), 0)
    image.paste(1, (8, 0, 16, 16))
    shown = brightness(encode(image, format))
    assert (shown[:, :8] == 0).all()
    assert (shown[:, 8:] == 255).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bit_grey_is_scaled_by_its_full_range(format):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    options = {"irreversible": False} if format == "JPEG2000" else {}
    assert (brightness(encode(grey(values), format, **options)) == np.arange(256).reshape(16, 16)).all()


def test_dark_sixteen_bit_grey_stays_dark():
    values = np.full((16, 16), 100 * 257, dtype=np.uint16)
    assert (brightness(encode(grey(values), "PNG")) == 100).all()


def test_grey_beyond_sixteen_bits_is_scaled_by_the_range_it_uses():
    values = np.linspace(-1_000_000, 1_000_000, 256).astype(np.int32).reshape(16, 16)
    shown = brightness(encode(grey(values), "TIFF"))
    assert (shown[0, 0], shown[15, 15]) == (0, 255)
    assert (np.diff(shown.reshape(-1).astype(int)) == 1).all()


def test_float_grey_between_zero_and_one_is_taken_as_it_is():
    values = (np.arange(256, dtype=np.float32) / 255 / 2).reshape(16, 16)
    shown = brightness(encode(grey(values), "TIFF"))
    assert abs(shown - np.arange(256).reshape(16, 16) / 2).max() <= 0.5


def test_other_float_grey_is_scaled_by_the_range_it_uses():
    values = (np.arange(256, dtype=np.float32) * 10 - 500).reshape(16, 16)
    assert (brightness(encode(grey(values), "TIFF")) == np.arange(256).reshape(16, 16)).all()


def test_float_grey_of_one_value_has_one_colour():
    for value in (0.5, 7.0):
        assert len(np.unique(brightness(encode(grey(np.full((16, 16), value, np.float32)), "TIFF")))) == 1


def test_float_grey_without_numbers_is_black_there():
    values = np.full((16, 16), 0.5, dtype=np.float32)
    values[0, :3] = (np.nan, np.inf, -np.inf)
    shown = brightness(encode(grey(values), "TIFF"))
    assert (shown[0, :3] == 0).all()
    assert (shown[1:] == 128).all()


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_shows_its_colours(format):
    cmyk = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (0, 255, 255, 0)])
    red, green, blue = colour_of(open_up(encode(cmyk, format, **({"quality": 95} if format == "JPEG" else {}))))
    assert red > 250
    assert green < 5
    assert blue < 5


# Not YCbCr: Pillow 12.3 writes such a TIFF too short for itself.
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "LAB", "CMYK", "P", "1", "I;16", "I", "F"])
def test_every_mode_of_a_tiff_becomes_rgb(mode):
    image = Image.new(mode, (16, 16))
    assert open_up(encode(image, "TIFF")).pixels_HWC.shape == (16, 16, 3)


def test_heic_is_read_where_its_extra_is_installed():
    pytest.importorskip("pillow_heif")
    assert "HEIF" in formats()
    red, green, blue = colour_of(open_up(encode(plain("RGB", RED, 64), "HEIF")))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_an_animation_shows_its_first_frame(format):
    first, *others = (plain("RGB", colour) for colour in (RED, BLUE, BLACK))
    options = {"lossless": True} if format == "WEBP" else {"quality": 100, "subsampling": "4:4:4"}
    data = encode(first, format, save_all=True, append_images=others, **(options if format != "TIFF" else {}))
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 3
    red, green, blue = colour_of(open_up(data))
    assert red > 250
    assert green < 5
    assert blue < 5


def test_an_mpo_shows_its_first_picture():
    data = encode(plain("RGB", RED), "MPO", save_all=True, append_images=[plain("RGB", BLUE)], quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
    red, _, blue = colour_of(open_up(data))
    assert red > 250
    assert blue < 5


def test_a_colour_profile_or_text_beside_the_pixels_changes_nothing():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "a cat", zip=True)
    image = photo(16, 16)
    data = encode(image, "PNG", pnginfo=notes, icc_profile=b"not a profile", gamma=0.5)
    assert (open_up(data).pixels_HWC == np.asarray(image)).all()
