import contextlib
import errno
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from blip2cap.decode.formats import FORMATS, formats
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


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_half_an_image_is_truncated(format, share):
    image = photo().quantize(256) if format == "GIF" else photo()
    data = encode(image, format)
    assert failure(data[: int(len(data) * share)]) == "truncated"


def test_half_a_heic_is_truncated_with_its_extra_and_unsupported_without(monkeypatch):
    pytest.importorskip("pillow_heif")
    assert "HEIF" in formats()
    half = encode(photo(), "HEIF")[:-700]
    assert failure(half) == "truncated"
    monkeypatch.setattr("blip2cap.decode.failures.formats", lambda: FORMATS)
    monkeypatch.setattr("blip2cap.decode.image.formats", lambda: FORMATS)
    assert failure(half) == "unsupported"


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


PAGES = {
    "EPS": lambda: encode(photo(), "EPS"),
    "PDF": lambda: encode(photo(), "PDF"),
    "PostScript": lambda: b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "EPS with a preview": lambda: b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, 99, 0, 0, 0, 0, 0xFFFF) + b"%!PS" * 99,
}


@pytest.mark.parametrize("kind", PAGES)
def test_vector_formats_are_never_opened_and_start_no_ghostscript(kind, monkeypatch):
    def start(*args, **settings):
        raise AssertionError(f"starts {args}")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(os, "system", start)
    assert failure(PAGES[kind]()) == "not_an_image"


RAISED = {
    UnidentifiedImageError("cannot identify"): "not_an_image",
    OSError("image file is truncated (3 bytes not processed)"): "truncated",
    OSError("broken data stream when reading image file"): "corrupt",
    OSError("out of memory when reading image file"): "out_of_memory",
    ValueError("Decompressed data too large"): "corrupt",
    SyntaxError("not a PNG file"): "corrupt",
    NotImplementedError("Unimplemented pixel format 7"): "unsupported",
    Image.DecompressionBombError("exceeds limit"): "too_large",
    EOFError("no more images"): "truncated",
    EOFError(): "truncated",
    IndexError("index out of range"): "corrupt",
    KeyError("MPO"): "corrupt",
    TypeError(): "corrupt",
    RuntimeError("codec configuration"): "corrupt",
    struct.error("unpack requires a buffer"): "corrupt",
}


@pytest.mark.parametrize(("error", "code"), RAISED.items(), ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("where", ["open", "load"])
def test_whatever_pillow_raises_gets_a_code(error, code, where, monkeypatch):
    def raises(*args, **settings):
        raise error

    monkeypatch.setattr(Image if where == "open" else PngImageFile, where, raises)
    assert failure(encode(photo(), "PNG")) == code


def test_no_memory_is_not_the_fault_of_the_file(monkeypatch):
    def raises(*args, **settings):
        raise MemoryError

    monkeypatch.setattr(PngImageFile, "load", raises)
    with pytest.raises(MemoryError):
        open_up(encode(photo(), "PNG"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000"])
def test_nothing_is_decoded_of_what_has_too_many_pixels(format, monkeypatch):
    def load(self):
        raise AssertionError("decodes it")

    data = encode(photo().quantize(256) if format == "GIF" else photo(), format)
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert failure(data, max_pixels=100) == "too_large"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "group4", "packbits", "jpeg"])
def test_decoders_print_nothing_about_damage(compression, capfd):
    """libtiff would, from C."""
    rng = np.random.default_rng(0)
    image = photo(64, 48).convert("1" if compression == "group4" else "RGB")
    file = encode(image, "TIFF", compression=compression)
    num_failed = 0
    for _ in range(60):
        data = bytearray(file)
        for place in rng.integers(8, len(data), 4):
            data[place] = rng.integers(256)
        try:
            decode(bytes(data), 16, DecodeOptions(max_pixels=1_000_000))
        except ImageError:
            num_failed += 1
    assert num_failed
    assert capfd.readouterr() == ("", "")


def test_pillow_prints_nothing_about_damage(tmp_path):
    """It would, through logging's handler of last resort, which pytest disables."""
    data = bytearray(encode(photo(), "TIFF"))
    tag = data.index(struct.pack("<HHIH", 277, 3, 1, 3))
    data[tag + 8 : tag + 10] = struct.pack("<H", 2048)
    (tmp_path / "many_samples.tif").write_bytes(data)
    program = (
        "import sys; from blip2cap.decode.image import decode; from blip2cap.options import DecodeOptions\n"
        "from blip2cap.errors import ImageError\n"
        "try: decode(open(sys.argv[1], 'rb').read(), 16, DecodeOptions())\n"
        "except ImageError as error: print(error.code)"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "many_samples.tif")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("not_an_image\n", "")


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


def test_names_that_no_file_can_have_are_unreadable(tmp_path):
    os.symlink("round.jpg", tmp_path / "round.jpg")
    assert unreadable(tmp_path / "round.jpg") == "unreadable"
    assert unreadable("a\0b.jpg") == "unreadable"
    assert unreadable("x" * 5_000) == "unreadable"


def test_an_error_of_the_disk_is_no_statement_about_the_image(tmp_path, monkeypatch):
    (tmp_path / "cat.jpg").touch()

    def failing(path):
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(os, "stat", failing)
    assert unreadable(tmp_path / "cat.jpg") == "unreadable"


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
