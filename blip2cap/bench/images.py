"""The images of a benchmark: drawn scenes as JPEG files, copies at the model's size, and folders of links for peers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from blip2cap.decode.image import Pixels
from blip2cap.decode.inputs import ImageInput
from blip2cap.decode.read import read
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from blip2cap.tiny.scenes import draw

QUALITY = 90
"""Of JPEG files: about what cameras use."""


def draw_images(
    folder: Path, seeds: Iterable[int], size: tuple[int, int], *, budget_s: float | None = None
) -> list[ImageRef]:
    """Draw one scene for each seed as a JPEG file, until the time is spent.

    All differ: blip2cap captions equal images only once.
    """
    refs, started = [], time.monotonic()
    for seed in seeds:
        path = folder / f"{seed:06}.jpg"
        draw(seed, size).image.save(path, quality=QUALITY)
        refs.append(ImageRef(path=str(path), name=path.name))
        if budget_s is not None and time.monotonic() - started > budget_s:
            break
    return refs


def copy_small(refs: Sequence[ImageRef], folder: Path, form: ImageInput, options: DecodeOptions) -> list[ImageRef]:
    """Save images uncompressed in the model's form: decoding them costs next to nothing and changes no pixel."""
    copies = []
    with closing(form.open(options)) as decoder:
        for index, ref in enumerate(refs):
            path = folder / f"{index:06}.ppm"
            Image.fromarray(decoder.decode(read(ref, options), isolated=False).content).save(path)
            copies.append(ImageRef(path=str(path), name=path.name))
    return copies


def middle_image(folder: Path) -> Pixels:
    """Return the copy of median size."""
    paths = sorted(folder.iterdir(), key=lambda path: path.stat().st_size)
    with Image.open(paths[len(paths) // 2]) as image:
        return np.asarray(image)


def link(refs: Sequence[ImageRef], folder: Path) -> Path:
    """Link the files into one folder, for a program that takes a folder; their order by name is that of `refs`.

    All are named .jpg: such programs select files by their name, and Pillow detects the format.
    """
    folder.mkdir()
    for index, ref in enumerate(refs):
        os.symlink(os.path.realpath(ref.path), folder / f"{index:06}.jpg")
    return folder
