"""torch's resizing compared with Pillow's: the greatest difference."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blip2cap.decode.image import decode
from blip2cap.models.blip2.resize import choose_resizer, resize_pixels
from blip2cap.options import DecodeOptions
from blip2cap.tiny.scenes import draw
from tests.commands import environment

pytestmark = pytest.mark.skipif(choose_resizer() is None, reason="this processor resizes with Pillow")


def difference(image: Image.Image, size: int) -> tuple[int, float]:
    """Return the largest and the mean difference, in levels."""
    ours = resize_pixels(np.array(image), size)
    theirs = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    assert ours.shape == theirs.shape
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    levels = np.abs(ours.astype(int) - theirs)
    return int(levels.max()), float(levels.mean())


@pytest.mark.parametrize("size", [112, 224, 364])
@pytest.mark.parametrize("shape", [(640, 480), (1000, 750), (4000, 3000), (400, 1200)])
def test_scenes_differ_at_few_edges_only(shape: tuple[int, int], size: int) -> None:
    most, mean = difference(draw(11, (640, 480)).image.resize(shape), size)
    assert most <= (1 if shape[0] >= shape[1] else 8)
    assert mean <= 0.02


@settings(max_examples=40, deadline=None)
@given(st.integers(56, 400), st.integers(56, 400), st.integers(0, 1000))
def test_noise_of_any_shape_differs_little(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    most, mean = difference(Image.fromarray(pixels), 56)
    assert most <= 24
    assert mean <= 0.6


def test_it_is_used_in_fast_mode_only_and_never_for_what_would_need_a_large_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = []

    def counting(pixels, size):
        used.append(pixels.shape)
        return resize_pixels(pixels, size)

    file = io.BytesIO()
    draw(3, (320, 240)).image.save(file, "PNG")
    fast = decode(file.getvalue(), 112, DecodeOptions(), counting)
    exact = decode(file.getvalue(), 112, DecodeOptions(mode="exact"), counting)
    assert used == [(240, 320, 4)]
    assert np.abs(fast.pixels_HWC.astype(int) - exact.pixels_HWC).max() <= 2
    monkeypatch.setattr("blip2cap.decode.image._RESIZER_PIXELS", 1000)
    assert np.array_equal(decode(file.getvalue(), 112, DecodeOptions(), counting).pixels_HWC, exact.pixels_HWC)
    assert len(used) == 1


def test_what_has_to_grow_is_left_to_pillow() -> None:
    file = io.BytesIO()
    draw(3, (320, 100)).image.save(file, "PNG")
    fast, exact = (decode(file.getvalue(), 112, DecodeOptions(mode=mode), resize_pixels) for mode in ("fast", "exact"))
    assert np.array_equal(fast.pixels_HWC, exact.pixels_HWC)


@pytest.mark.long
def test_a_thread_that_resizes_starts_no_others() -> None:
    """With a team of OpenMP threads for each, the model's threads would sleep at every operation."""
    code = """
import os, threading, numpy as np, torch
from blip2cap.models.blip2.resize import resize_pixels
torch.set_num_threads(4)
def work():
    before = len(os.listdir("/proc/self/task"))
    for shape in ((480, 640, 3), (3000, 4000, 3)):
        resize_pixels(np.zeros(shape, dtype=np.uint8), 364)
    print(len(os.listdir("/proc/self/task")) - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize("capability", ["DEFAULT", "NO AVX", "VSX"])
def test_processors_without_a_routine_leave_it_to_pillow(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    choose_resizer.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert choose_resizer() is None
    choose_resizer.cache_clear()
