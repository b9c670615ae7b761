"""Draws sample_images again: scenes saved as files of users are. `python -m tests.make_samples`.

It also writes tests/golden/sample_captions.txt: the true caption of each, which the tiny model must generate.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from blip2cap.tiny.scenes import SAMPLE_SEEDS, draw

FOLDER = Path(__file__).parent.parent / "sample_images"
GOLDEN = Path(__file__).parent / "golden" / "sample_captions.txt"
_LANDSCAPE = (640, 480)
_TURN_CLOCKWISE = 6
"""EXIF orientation of a phone held upright: turn by 90 degrees clockwise to view."""


def _plain(image: Image.Image, path: Path) -> None:
    image.save(path, quality=88)


def _progressive(image: Image.Image, path: Path) -> None:
    image.save(path, progressive=True, quality=75)


def _lossless(image: Image.Image, path: Path) -> None:
    image.save(path, lossless=True)


def _palette(image: Image.Image, path: Path) -> None:
    image.quantize(64).save(path)


def _cmyk(image: Image.Image, path: Path) -> None:
    image.convert("CMYK").save(path, quality=92)


def _phone_portrait(image: Image.Image, path: Path) -> None:
    """Save an upright picture as a phone does: turned on its side, with the orientation in EXIF."""
    exif = Image.Exif()
    exif[0x0112] = _TURN_CLOCKWISE
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=90)


def _cut_out(image: Image.Image, path: Path) -> None:
    """Make the white ground transparent, with a loud colour hidden under it."""
    pixels = np.array(image.convert("RGBA"))
    lower = pixels[pixels.shape[0] // 2 :].reshape(-1, 4)
    colours, counts = np.unique(lower, axis=0, return_counts=True)
    ground = (pixels == colours[counts.argmax()]).all(axis=-1)
    pixels[ground] = (255, 0, 255, 0)
    Image.fromarray(pixels).save(path)


def _grey_scan(image: Image.Image, path: Path) -> None:
    """Save grey values with 16 bits, as scanners do."""
    Image.fromarray(np.array(image.convert("L"), dtype=np.uint16) * 257).save(path)


def _animation(image: Image.Image, path: Path) -> None:
    """Save an animation that begins with the picture."""
    others = [draw(seed, image.size).image for seed in (48, 94)]
    image.save(path, save_all=True, append_images=others, duration=400, loop=0)


SAMPLES: dict[str, tuple[int, tuple[int, int], Callable[[Image.Image, Path], None]]] = {
    "garden/flowers.png": (43, _LANDSCAPE, _plain),
    "garden/tall.png": (70, (360, 720), _palette),
    "holiday/IMG_0001.JPG": (5, _LANDSCAPE, _plain),
    "holiday/IMG_0002.jpg": (8, (480, 640), _phone_portrait),
    "holiday/evening.webp": (90, _LANDSCAPE, _plain),
    "holiday/panorama.jpg": (35, (1200, 480), _plain),
    "print/poster.jpg": (134, _LANDSCAPE, _cmyk),
    "print/scan.png": (47, _LANDSCAPE, _grey_scan),
    "web/animation.gif": (56, (400, 300), _animation),
    "web/large.jpg": (118, (1600, 1200), _plain),
    "web/progressive.jpg": (19, _LANDSCAPE, _progressive),
    "web/thumbnail.jpg": (2, (160, 120), _plain),
    "winter/cut_out.png": (131, _LANDSCAPE, _cut_out),
    "winter/fish.webp": (124, (800, 600), _lossless),
}
"""File -> the scene's seed, its size, how it is saved."""


def main() -> None:
    """Write every sample and the golden captions."""
    captions = []
    for name, (seed, size, save) in SAMPLES.items():
        assert seed in SAMPLE_SEEDS
        scene = draw(seed, size)
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save(scene.image, path)
        captions.append(f"{name}\t{scene.caption}\n")
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("".join(captions), encoding="utf-8")


if __name__ == "__main__":
    main()
