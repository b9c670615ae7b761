"""Indexes of given vectors, made without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blip2cap.index.build import mean_row, write_array, write_codes
from blip2cap.index.catalog import Catalog, SegmentEntry
from blip2cap.index.images import Image, make_table, write_table
from blip2cap.index.segment import VECTORS, map_array
from blip2cap.outputs.files import OS_FILES, Files
from tests.files import FastFiles

SETTINGS = {"command": "embed", "what": "queries", "model": "fake", "model_commit": "1", "dtype": "float32"}


def random_vectors(num_images: int, shape: tuple[int, int] = (4, 32), *, seed: int = 0, spread: float = 0.3) -> Any:
    """Normalised rows, float16, around one centre of 100 for each image."""
    rng = np.random.default_rng(seed)
    rows, length = shape
    centres = rng.standard_normal((100, length)).astype(np.float32)
    images = centres[rng.integers(100, size=num_images)][:, None] + spread * rng.standard_normal(
        (num_images, rows, length), np.float32
    )
    return (images / np.linalg.norm(images, axis=2, keepdims=True)).astype(np.float16)


def make_index(
    folder: Path,
    vectors: Any,
    names: Sequence[str] | None = None,
    *,
    sizes: Sequence[int] | None = None,
    paths: Sequence[str] | None = None,
    removed: Sequence[str] = (),
    settings: dict[str, Any] = SETTINGS,
    files: Files | None = None,
) -> Path:
    """Write an index of vectors, float16 [num_images, rows, length], in segments of these sizes; return its folder.

    It has no Parquet files, which searches do not read.
    """
    files = files or FastFiles()
    folder.mkdir(parents=True, exist_ok=True)
    names = names or [f"{number:06}.jpg" for number in range(len(vectors))]
    centre = mean_row(vectors)
    entries, start = [], 0
    for number, size in enumerate(sizes or [len(vectors)], start=1):
        inner = folder / f"segment-{number:06}"
        inner.mkdir()
        some = vectors[start : start + size]
        write_array(inner / VECTORS, "<f2", some.shape, [some], files)
        write_codes(inner / "codes-1.npy", map_array(inner / VECTORS, "<f2", some.shape), centre, files)
        images = [
            Image(
                file_name=names[at],
                file_name_b64="",
                path=(paths[at] if paths else f"/images/{names[at]}").encode(),
                num_bytes=1,
                mtime_ns=1,
                vector=at - start,
                removed=names[at] in removed,
            )
            for at in range(start, start + size)
        ]
        write_table(make_table(images), inner / "images-1.arrow", files)
        entries.append(SegmentEntry(name=inner.name, num_vectors=size, images="images-1.arrow"))
        start += size
    catalog = Catalog(
        settings=settings,
        shape=vectors.shape[1:],
        centre=centre,
        num_centre_images=len(vectors),
        segments=tuple(entries),
    )
    catalog.write(folder, OS_FILES if files is None else files)
    return folder
