import contextlib
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from blip2cap.decode.formats import FORMATS
from blip2cap.decode.image import decode
from blip2cap.decode.read import read
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions
from blip2cap.records import FAILURES, ImageRef
from tests.pictures import encode, open_up, photo

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100


def failure(data: bytes, **options) -> str:
    """Return why bytes cannot be decoded."""
    with pytest.raises(ImageError) as caught:
        decode(data, 16, DecodeOptions(**options))
    assert caught.value.code in FAILURES
    assert caught.value.detail
    return caught.value.code


def unreadable(path: object) -> str:
    """Return why a file cannot be read."""
    with pytest.raises(ImageError) as caught:
        read(ImageRef(path=os.fspath(path), name="x"), DecodeOptions())  # type: ignore[call-overload]
    return caught.value.code


def png(width: int, height: int) -> bytes:
    """Make a grey PNG that has a header for any size, and pixels for almost none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_half_an_image_is_truncated(format, share):
    data = encode(photo(), format)
    assert failure(data[: int(len(data) * share)]) == "truncated"


@pytest.mark.parametrize("format", ["GIF", "WEBP", "AVIF", "JPEG2000"])
def test_half_an_image_is_never_taken_for_a_whole_one(format):
    image = photo().quantize(256) if format == "GIF" else photo()
    data = encode(image, format)
    failure(data[: len(data) // 2])


def test_an_empty_file_is_truncated():
    assert failure(b"") == "truncated"


def test_damage_inside_an_image_is_corrupt():
    data = bytearray(encode(photo(), "PNG"))
    data[len(data) // 2 : len(data) // 2 + 200] = b"\x5a" * 200
    assert failure(bytes(data)) == "corrupt"


@pytest.mark.parametrize(
    "data",
    [
        b"this is no picture\n",
        b"\0" * 5_000,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<!DOCTYPE html><html>404</html>",
        b"PK\x03\x04" + b"\0" * 100,
    ],
)
def test_what_is_no_picture_is_not_an_image(data):
    assert failure(data) == "not_an_image"


@pytest.mark.parametrize("format", ["EPS", "PDF"])
def test_vector_formats_are_never_opened(format):
    assert failure(encode(photo(), format)) == "not_an_image"


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1"])
def test_heic_without_its_extra_is_unsupported_not_broken(brand, monkeypatch):
    monkeypatch.setattr("blip2cap.decode.failures.formats", lambda: FORMATS)
    data = HEIC.replace(b"ftypheic", b"ftyp" + brand)
    assert failure(data) == "unsupported"
    with pytest.raises(ImageError, match=r"blip2cap\[heif\]"):
        open_up(data)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "huge.jpg"
    path.write_bytes(b"")
    os.truncate(path, 40_000_000_000)  # sparse: takes no room
    assert unreadable(path) == "too_large"


def test_the_content_decides_not_the_name(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(encode(photo(), "PNG"))
    (tmp_path / "text.jpg").write_text("this is no picture")
    cat, text = (ImageRef(path=str(tmp_path / name), name=name) for name in ("cat.jpg", "text.jpg"))
    assert open_up(read(cat, DecodeOptions())).width == 80
    assert failure(read(text, DecodeOptions())) == "not_an_image"


def test_too_many_pixels_are_refused_from_the_header():
    whole = encode(photo(80, 60), "PNG")
    assert failure(whole, max_pixels=80 * 60 - 1) == "too_large"
    assert failure(png(100_000, 100_000)) == "too_large"
    assert decode(whole, 16, DecodeOptions(max_pixels=80 * 60)).width == 80


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_the_limit_is_ours_not_that_of_pillow(monkeypatch, format):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert open_up(encode(photo(), format)).width == 80
    assert Image.MAX_IMAGE_PIXELS == 10
    assert failure(encode(photo(), format), max_pixels=11) == "too_large"
    assert Image.MAX_IMAGE_PIXELS == 10


def test_the_settings_of_pillow_come_back_when_threads_overlap(monkeypatch):
    """The one that comes first leaves first: each would put back what the other had set."""
    picture, opened = encode(photo(), "PNG"), Image.open
    entered = {b"first": threading.Event(), b"second": threading.Event()}
    leave = {b"first": threading.Event(), b"second": threading.Event()}

    def slow_open(file, formats):
        name = file.getvalue()
        entered[name].set()
        assert leave[name].wait(10)
        file.seek(0)
        file.write(picture)
        file.seek(0)
        return opened(file, formats=formats)

    monkeypatch.setattr(Image, "open", slow_open)
    before = (list(warnings.filters), Image.MAX_IMAGE_PIXELS)
    threads = {}
    for name in (b"first", b"second"):
        threads[name] = threading.Thread(target=open_up, args=(name,))
        threads[name].start()
        assert entered[name].wait(10)
    leave[b"first"].set()
    threads[b"first"].join(10)
    limit = Image.MAX_IMAGE_PIXELS
    assert limit == DecodeOptions().max_pixels
    assert list(warnings.filters) != before[0]
    leave[b"second"].set()
    threads[b"second"].join(10)
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == before


def test_a_missing_file_has_vanished(tmp_path):
    (tmp_path / "file").touch()
    os.symlink("gone.jpg", tmp_path / "broken.jpg")
    for name in ("gone.jpg", "gone/cat.jpg", "file/cat.jpg", "broken.jpg"):
        assert unreadable(tmp_path / name) == "vanished"


@pytest.mark.timeout(20)
def test_a_fifo_is_not_regular_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert unreadable(tmp_path / "pipe.jpg") == "not_regular"


def test_folders_and_devices_are_not_regular(tmp_path):
    assert unreadable(tmp_path) == "not_regular"
    assert unreadable("/dev/zero") == "not_regular"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path):
    (tmp_path / "cat.jpg").touch(mode=0)
    assert unreadable(tmp_path / "cat.jpg") == "permission"


def test_a_refused_open_says_so_for_root_too(tmp_path, monkeypatch):
    (tmp_path / "cat.jpg").touch()

    def refused(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", refused)
    assert unreadable(tmp_path / "cat.jpg") == "permission"


def test_names_that_no_file_can_have_are_corrupt(tmp_path):
    os.symlink("round.jpg", tmp_path / "round.jpg")
    assert unreadable(tmp_path / "round.jpg") == "corrupt"
    assert unreadable("a\0b.jpg") == "corrupt"
    assert unreadable("x" * 5_000) == "corrupt"


def test_nothing_but_image_errors_comes_out_of_damaged_files():
    rng = np.random.default_rng(0)
    files = [encode(photo(16, 12), name) for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "JPEG2000", "BMP", "PPM")]
    for _ in range(150):
        for file in files:
            data = bytearray(file)
            for place in rng.integers(0, min(len(data), 300), 4):
                data[place] = rng.integers(256)
            with contextlib.suppress(ImageError):
                assert decode(bytes(data), 8, DecodeOptions(max_pixels=1_000_000)).pixels_HWC.shape == (8, 8, 3)


@pytest.mark.parametrize("place", [b"pitm", b"mdat"])
def test_an_avif_that_pillow_gives_up_on_is_corrupt(place):
    data = bytearray(encode(photo(16, 12), "AVIF"))
    data[data.index(place) + (4 if place == b"mdat" else 0)] = 0xFF
    assert failure(bytes(data)) == "corrupt"
