"""Indexes of given vectors, made without a model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from blip2cap.column_types import Vector
from blip2cap.decode.read import read
from blip2cap.index.build import mean_row, write_array, write_codes
from blip2cap.index.catalog import Catalog, SegmentEntry
from blip2cap.index.images import Image, make_table, write_table
from blip2cap.index.job import IndexJob
from blip2cap.index.segment import VECTORS, map_array
from blip2cap.index.store import IMAGES
from blip2cap.jobs.job import Outcome
from blip2cap.options import DecodeOptions, SourceOptions
from blip2cap.outputs.files import OS_FILES, Files
from blip2cap.outputs.parquet import ParquetSink
from blip2cap.records import ImageRef
from blip2cap.rows import Column, Row, make_schema
from blip2cap.source.inputs import Source
from blip2cap.tasks.registry import TaskEntry
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
        sums = {VECTORS: write_array(inner / VECTORS, "<f2", some.shape, [some], files)}
        codes = write_codes(inner / "codes-1.npy", map_array(inner / VECTORS, "<f2", some.shape), centre, files)
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
        sums |= {"codes-1.npy": codes, IMAGES: write_table(make_table(images), inner / IMAGES, files)}
        entries.append(SegmentEntry(name=inner.name, num_vectors=size, images=IMAGES, checksums=sums))
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


SHAPE = (4, 32)


class FakeEmbedder:
    """Makes the rows of images from a hash of their bytes; those that begin with `bad` fail."""

    def __init__(self, *, files: Files | None = None, commit: str = "1", stop_after: int | None = None) -> None:
        self.files = files or FastFiles()
        self.commit, self.stop_after = commit, stop_after
        self.names: list[str] = []
        """Names of the images that were embedded."""

    def settings(self, source: Source) -> dict[str, Any]:
        made = {**SETTINGS, "model_commit": self.commit, "decode": "fast", "input_root": source.root}
        return {name: value for name, value in made.items() if name != "dtype"}

    def run(self, source: Source, out: Path, dtype: str) -> Outcome:
        assert dtype in ("auto", "float32")
        done = 0
        with closing(ParquetSink(out, files=self.files)) as sink:
            sink.begin({**self.settings(source), "dtype": "float32"})
            for ref in source.stream():
                if self.stop_after == done:
                    break
                sink.write([fake_row(ref, read(ref, DecodeOptions()))])
                self.names.append(ref.name)
                done += 1
            sink.finish(stopped=self.stop_after is not None)
        return Outcome(
            out=str(out),
            num_images=done,
            num_rows_before=0,
            num_failed_before=0,
            skipped={},
            damaged=(),
            stats=None,
            stopped=self.stop_after is not None,
        )


def fake_row(ref: ImageRef, data: bytes) -> Row:
    """Return the row of an image of these bytes."""
    if data.startswith(b"bad"):
        return SCHEMA.row(file_name=ref.file_name, file_name_b64=ref.file_name_b64, status="failed", error="corrupt")
    return SCHEMA.row(
        file_name=ref.file_name, file_name_b64=ref.file_name_b64, status="ok", embedding=fake_vectors(data)
    )


def fake_vectors(data: bytes) -> Any:
    """Return the embedding of an image of these bytes."""
    return random_vectors(1, SHAPE, seed=zlib.crc32(data))[0]


SCHEMA = make_schema(Column("embedding", Vector(SHAPE, "float16")))
ENTRY = TaskEntry(schema_of=lambda settings: SCHEMA)
"""The entry of the fake's task, for `tasks.registry.TASKS`."""


def index_job(folder: Path, *inputs: Path, **options: Any) -> IndexJob:
    """Return the description of an update."""
    limits = {name: options.pop(name) for name in ("limit", "files_from", "include") if name in options}
    return IndexJob(index=str(folder), source=SourceOptions(inputs=tuple(map(str, inputs)), **limits), **options)
