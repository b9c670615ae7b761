"""A view of the pixels of Pillow's images: the same as a copy, for as long as it is used."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from blip2cap.decode.image import Pixels, unpack
from blip2cap.decode.pixel_view import view_pixels
from blip2cap.models.blip2.resize import choose_resizer, resize_pixels
from blip2cap.options import DecodeOptions


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (640, 480)])
@pytest.mark.parametrize(
    "make",
    [lambda one: one, lambda one: one.copy(), lambda one: one.transpose(Image.Transpose.ROTATE_90)],
    ids=["array", "copy", "turned"],
)
def test_a_view_has_the_pixels_of_a_copy(shape: tuple[int, int], make: Callable[[Image.Image], Image.Image]) -> None:
    image = make(noise(*shape))
    pixels = view_pixels(image)
    assert pixels.shape == (*np.array(image).shape[:2], 4)
    assert np.array_equal(pixels[:, :, :3], np.array(image))


def test_a_view_is_no_copy_and_outlives_its_image() -> None:
    image = noise(64, 48)
    first, second = view_pixels(image), view_pixels(image)
    assert np.shares_memory(first, second)
    wanted = np.array(image)
    gone = weakref.ref(image)
    del image, second
    gc.collect()
    others = [Image.new("RGB", (64, 48), "red") for _ in range(20)]  # would take its memory
    assert gone() is None
    assert np.array_equal(first[:, :, :3], wanted)
    assert len(others) == 20


def test_a_large_image_is_copied() -> None:
    image = Image.new("RGB", (3000, 2000), "red")
    assert view_pixels(image).shape == (2000, 3000, 3)
    assert (view_pixels(image) == (255, 0, 0)).all()


@pytest.mark.skipif(choose_resizer() is None, reason="this processor resizes with Pillow")
@pytest.mark.parametrize("shape", [(640, 480), (225, 401), (1000, 750), (448, 448)])
def test_four_channels_are_resized_to_the_same_pixels_as_three(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    square = resize_pixels(view_pixels(image), 224)
    assert square.shape == (224, 224, 3)
    assert square.flags.c_contiguous
    assert np.array_equal(square, resize_pixels(np.array(image), 224))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_decoding_copies_no_pixels(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    copies: list[tuple[int, ...]] = []

    def counted(image: Image.Image) -> Pixels:
        copies.append(image.size)
        return np.asarray(image)

    file = io.BytesIO()
    noise(640, 480).save(file, form)
    monkeypatch.setattr("blip2cap.decode.image.np.array", counted)
    assert unpack(file.getvalue(), 224, DecodeOptions(), to_square=False).pixels_HWC.shape == (480, 640, 4)
    assert copies == []
