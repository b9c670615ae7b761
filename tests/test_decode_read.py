from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from blip2cap.decode.read import read
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions
from blip2cap.records import Held, ImageRef

OPTIONS = DecodeOptions(max_bytes=100)


@pytest.fixture
def digits(here):
    (here / "digits").write_bytes(bytes(range(100)) * 3)
    return "digits"


def why(ref: ImageRef) -> str:
    with pytest.raises(ImageError) as caught:
        read(ref, OPTIONS)
    return str(caught.value)


def part(path: str, offset: int, num_bytes: int) -> ImageRef:
    return ImageRef(path=path, name="x", offset=offset, num_bytes=num_bytes)


@pytest.mark.parametrize(("offset", "num_bytes"), [(0, 0), (0, 100), (200, 100), (299, 1), (300, 0), (50, 77)])
def test_a_part_of_a_file_is_read(digits, offset, num_bytes):
    whole = bytes(range(100)) * 3
    assert read(part(digits, offset, num_bytes), OPTIONS) == whole[offset : offset + num_bytes]


def test_parts_are_read_side_by_side(digits):
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda number: read(part(digits, number, 1), OPTIONS), range(100))
    assert list(found) == [bytes([number]) for number in range(100)]


@pytest.mark.parametrize(("offset", "num_bytes"), [(250, 51), (300, 1), (1 << 40, 1)])
def test_a_part_that_the_file_has_not_got_is_truncated(digits, offset, num_bytes):
    assert why(part(digits, offset, num_bytes)) == "truncated: the archive ends before it does"


def test_a_size_over_the_limit_is_refused_before_anything_is_read(digits):
    def never() -> bytes:
        raise AssertionError

    assert why(part("gone", 0, 101)) == "too_large: 101 bytes is more than 100"
    assert why(ImageRef(path="s3://x/y", name="x", num_bytes=101)).startswith("too_large")
    assert why(ImageRef(path="x", name="x", load=never, num_bytes=101)).startswith("too_large")


def test_a_part_of_what_is_no_file_is_told(here):
    os.mkfifo("pipe")
    assert why(part("pipe", 0, 1)).startswith("not_regular")
    assert why(part("gone", 0, 1)).startswith("vanished")


def test_what_the_source_holds_ready_is_taken_once_and_let_go():
    held = Held(b"bytes")
    assert read(ImageRef(path="gone", name="x", load=held, num_bytes=5, num_held=5), OPTIONS) == b"bytes"
    with pytest.raises(AssertionError, match="already taken"):
        held()


def test_what_is_loaded_is_measured_too():
    assert why(ImageRef(path="x", name="x", load=lambda: bytes(101))) == "too_large: 101 bytes is more than 100"


def test_what_the_source_knows_to_be_bad_is_not_read(digits):
    assert why(ImageRef(path=digits, name="x", error="not_regular", detail="a link")) == "not_regular: a link"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.jpg", "HTTPS://example.org/x.jpg"])
def test_nothing_is_fetched_from_web_servers_unless_that_is_allowed(url):
    assert why(ImageRef(path=url, name=url)) == "unsupported: not fetched without allow_http"


@pytest.mark.parametrize("url", ["ftp://x/y.jpg", "file:///etc/passwd", "zip://x", "s3x://x/y"])
def test_a_scheme_that_is_not_known_is_unsupported(url):
    assert why(ImageRef(path=url, name=url)).startswith("unsupported: ")
