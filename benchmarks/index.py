"""Searching an index of random vectors, and bringing an index up to date.

    PYTHONPATH=. python benchmarks/index.py --out benchmarks/results/index.json --minutes 60 [--only search_50k]

Vectors: 1,000 centres in 256 dimensions that share a part, as embeddings do; an image lies near one of them, and its
32 rows near the image (mean cosine of two rows of an image: `rows_cosine`). Queries are of two kinds. `near` is a row
of an image with noise, as an image or a good text is. `far` has a cosine of about 0.4 with the best row, as many a text
of a real model: there the scan knows less, as one bit for each number of random vectors says little.

Searches run in one process; every query is asked twice, and the second time counts. `cpu_ms` is the time of all cores,
which other programs on the machine change less. An update is measured with an embedder
that costs nothing (its vectors come from a pool): what remains is everything else, the rows in the Parquet file too.

It takes 20 GB in the temporary folder (TMPDIR), and as much memory for the pages of a million images; some 30 minutes.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Facts
from benchmarks.programs import ROOT
from benchmarks.suite import Section, main
from blip2cap.index import build
from blip2cap.index.catalog import Catalog, SegmentEntry
from blip2cap.index.images import Image, make_table, write_table
from blip2cap.index.index import Index
from blip2cap.index.job import IndexJob
from blip2cap.index.segment import VECTORS, map_array
from blip2cap.index.update import update_index
from blip2cap.jobs.job import Outcome
from blip2cap.options import SourceOptions
from blip2cap.outputs.files import OS_FILES
from blip2cap.outputs.parquet import ParquetSink
from blip2cap.source.inputs import Source
from blip2cap.tasks.embed import Embed, embedding_schema

ROWS, LENGTH, NUM_CENTRES, K = 32, 256, 1000, 10
COMMON, CENTRE, IMAGE, ROW = 0.6, 0.6, 0.5, 0.4
"""Lengths of the parts that are added up to a row, before it is normalised."""
_BLOCK = 2048
_POOL = 1 << 25
_NUM_QUERIES = 40


class Vectors:
    """Random images around centres; the noise is cut out of one pool at random places, as drawing it takes longest."""

    def __init__(self, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.common = COMMON * self._unit(1)
        self.centres = CENTRE * self._unit(NUM_CENTRES)
        self.pool = torch.randn(_POOL, generator=self.random) / LENGTH**0.5

    def _unit(self, num: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(num, LENGTH, generator=self.random), dim=1)

    def _noise(self, num: int) -> torch.Tensor:
        start = int(torch.randint(_POOL - num * LENGTH, (1,), generator=self.random))
        return self.pool[start : start + num * LENGTH].reshape(num, LENGTH)

    def images(self, num: int) -> torch.Tensor:
        """Return float16 [num, ROWS, LENGTH]."""
        centres = self.centres[torch.randint(NUM_CENTRES, (num,), generator=self.random)]
        images = self.common + centres + IMAGE * self._noise(num)
        rows = images[:, None] + ROW * self._noise(num * ROWS).reshape(num, ROWS, LENGTH)
        return torch.nn.functional.normalize(rows, dim=2).half()

    def blocks(self, num: int) -> Iterator[Any]:
        """Yield images in blocks."""
        for start in range(0, num, _BLOCK):
            yield self.images(min(_BLOCK, num - start)).numpy()

    def queries(self, images: Any, num: int, *, share: float) -> Any:
        """Return float32 [num, LENGTH]: a random row of a random image, of which `share` is left beside noise."""
        random = np.random.default_rng(1)
        rows = images[random.integers(len(images), size=num), random.integers(ROWS, size=num)].astype(np.float32)
        noise = random.standard_normal(rows.shape, np.float32) / LENGTH**0.5
        queries = share * rows + (1 - share**2) ** 0.5 * noise
        return queries / np.linalg.norm(queries, axis=1, keepdims=True)


QUERIES = {"near": 0.8, "far": 0.3}
"""Kinds of queries with the share of a row in them."""


def make_index(folder: Path, num_images: int) -> Facts:
    """Write an index of random images, without Parquet files, which searches do not read."""
    inner = folder / "segment-000001"
    inner.mkdir(parents=True)
    shape = (num_images, ROWS, LENGTH)
    build.write_array(inner / VECTORS, "<f2", shape, Vectors().blocks(num_images), OS_FILES)
    vectors = map_array(inner / VECTORS, "<f2", shape)
    started = time.monotonic()
    centre = build.mean_row(vectors)
    build.write_codes(inner / "codes-1.npy", vectors, centre, OS_FILES)
    codes_s = time.monotonic() - started
    images = [
        Image(file_name=name, file_name_b64="", path=name.encode(), num_bytes=1, mtime_ns=1, vector=at)
        for at, name in enumerate(f"{number // 1000:04}/{number:07}.jpg" for number in range(num_images))
    ]
    write_table(make_table(images), inner / "images-1.arrow", OS_FILES)
    entry = SegmentEntry(name=inner.name, num_vectors=num_images, images="images-1.arrow", checksums={})
    Catalog(settings={}, shape=(ROWS, LENGTH), centre=centre, num_centre_images=num_images, segments=(entry,)).write(
        folder
    )
    some = vectors[:100].astype(np.float32)
    cosine = float((some @ some.transpose(0, 2, 1)).sum() - 100 * ROWS) / (100 * ROWS * (ROWS - 1))
    gigabytes = sum(path.stat().st_size for path in inner.iterdir()) / 1e9
    return {
        "images": num_images,
        "codes_s": round(codes_s, 1),
        "gb": round(gigabytes, 2),
        "rows_cosine": round(cosine, 2),
    }


def exact_best(images: Any, queries: Any) -> list[set[int]]:
    """Return the positions of the K best images for each query, in one pass over all vectors."""
    best = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
    for start in range(0, len(images), _BLOCK):
        block = torch.from_numpy(images[start : start + _BLOCK].copy()).float()
        scores = (block.reshape(-1, LENGTH) @ torch.from_numpy(queries).T).reshape(len(block), ROWS, -1).amax(1).numpy()
        for number in range(len(queries)):
            values = np.concatenate([best[number][0], scores[:, number]])
            places = np.concatenate([best[number][1], np.arange(start, start + len(block))])
            top = np.argsort(-values, kind="stable")[:K]
            best[number] = values[top], places[top]
    return [{int(place) for place in places} for _, places in best]


def search(folder: Path) -> Facts:
    """Time queries of all kinds, and compare what they find with an exact search.

    Each is asked twice: the first time its vectors may come from the disk, the second time they are in memory.
    """
    index, vectors = Index.open(folder), Vectors()
    images = index.segments[0].vectors
    kinds = {kind: vectors.queries(images, _NUM_QUERIES, share=share) for kind, share in QUERIES.items()}
    exact = iter(exact_best(images, np.concatenate([*kinds.values()])))
    facts: Facts = {"queries": _NUM_QUERIES}
    for kind, queries in kinds.items():
        first, warm, cpu, recalls = list[float](), list[float](), list[float](), list[float]()
        for times in (first, warm):
            for query in queries:
                started, used = time.perf_counter(), time.process_time()
                hits = index.search(query[None], k=K, exact=False)
                times.append(1000 * (time.perf_counter() - started))
                if times is warm:
                    cpu.append(1000 * (time.process_time() - used))
                    recalls.append(len({int(hit.file_name[-11:-4]) for hit in hits} & next(exact)) / K)
        facts[kind] = {
            "first_ms": round(statistics.median(first), 1),
            "median_ms": round(statistics.median(warm), 1),
            "p10_ms": round(float(np.percentile(warm, 10)), 1),
            "p90_ms": round(float(np.percentile(warm, 90)), 1),
            "cpu_ms": round(statistics.median(cpu), 1),
            "recall_at_10": round(statistics.mean(recalls), 4),
        }
    facts["load_average"] = round(os.getloadavg()[0], 1)  # above 1, other programs were at work too
    return facts


def exact_search(folder: Path) -> Facts:
    """Time exact queries."""
    index = Index.open(folder)
    queries = Vectors().queries(index.segments[0].vectors, 8, share=QUERIES["near"])
    times = []
    for query in queries:
        started = time.perf_counter()
        index.search(query[None], k=K, exact=True)
        times.append(1000 * (time.perf_counter() - started))
    return {"median_ms": round(statistics.median(times[2:]), 1)}


def image_search(folder: Path) -> Facts:
    """Time queries of 32 vectors, as those of an image."""
    index = Index.open(folder)
    times = []
    for at in range(8):
        query = index.segments[0].vectors[at * 100].astype(np.float32)
        started = time.perf_counter()
        hits = index.search(query, k=K, exact=False)
        times.append(1000 * (time.perf_counter() - started))
        assert int(hits[0].file_name[-11:-4]) == at * 100, hits[0]
    return {"median_ms": round(statistics.median(times[2:]), 1)}


_COLD = """
import sys, numpy as np
from blip2cap.index.index import Index
index = Index.open(sys.argv[1])
print(len(index.search(np.eye(1, index.catalog.shape[1], dtype=np.float32), k=10)))
"""


def cold_start(folder: Path) -> Facts:
    """Time a new process that searches for a given vector; files are in the page cache, or not for the first search."""
    times = []
    for _ in range(5):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", _COLD, str(folder)], check=True, cwd=ROOT, capture_output=True)
        times.append(time.monotonic() - started)
    return {"first_s": round(times[0], 2), "median_s": round(statistics.median(times[1:]), 2)}


def duplicates(folder: Path) -> Facts:
    """Time a search for duplicates; the peak is that of the process so far, pages of mapped files included."""
    started = time.monotonic()
    groups = sum(1 for _ in Index.open(folder).duplicates(0.97))
    seconds = time.monotonic() - started
    return {
        "groups": groups,
        "seconds": round(seconds, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def searches(num_images: int, most_ms: float, least_recall: float, *, full: bool) -> Callable[[Section], None]:
    """Return a section that measures searches in an index of this size."""

    def run(section: Section) -> None:
        folder = section.pictures.folder / f"{num_images}.index"
        section.attempt("built", make_index, folder, num_images)
        near = section.attempt("search", search, folder).get("near", {})
        section.judge("query_ms", near.get("median_ms"), at_most=most_ms)
        section.judge("recall_at_10", near.get("recall_at_10"), at_least=least_recall)
        section.attempt("image", image_search, folder)
        if full:
            section.attempt("exact", exact_search, folder)
            section.attempt("duplicates", duplicates, folder)
        facts = section.attempt("cold_start", cold_start, folder)
        section.judge("cold_start_s", facts.get("median_s"), at_most=1)
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()

    return run


class FreeEmbedder:
    """Writes rows as a run does; the vectors come from a pool, so that embedding costs nothing."""

    def __init__(self) -> None:
        self.vectors = Vectors().images(256).numpy()
        self.task = Embed(what="queries", dtype="float16", shape=(ROWS, LENGTH))
        self.num_embedded = 0

    def settings(self, source: Source) -> dict[str, Any]:
        """Return settings as those of a run."""
        made = {"command": "embed", **self.task.settings(), **self.task.model_settings(), "model": "none"}
        return {**made, "input_root": source.root}

    def run(self, source: Source, out: Path, dtype: str) -> Outcome:
        """Read the images and write a row for each, 64 at once."""
        schema, rows, number = embedding_schema((ROWS, LENGTH), "float16"), [], 0
        with closing(ParquetSink(out)) as sink:
            sink.begin({**self.settings(source), "dtype": "float32"})
            for number, ref in enumerate(source.stream(), start=1):
                assert ref.load is not None
                ref.load()
                vectors = self.vectors[number % len(self.vectors)]
                rows.append(schema.row(file_name=ref.file_name, status="ok", embedding=vectors))
                if len(rows) == 64:
                    sink.write(rows)
                    rows = []
            sink.write(rows)
            sink.finish()
        self.num_embedded = number
        return Outcome(
            out=str(out), num_images=number, num_rows_before=0, num_failed_before=0, skipped={}, damaged=(), stats=None
        )


def update(section: Section, num_images: int = 20_000) -> None:
    """Build an index, change one file of a hundred, and bring it up to date."""
    folder = section.pictures.folder / "files"
    names = [folder / f"{number // 1000:03}" / f"{number:06}.jpg" for number in range(num_images)]
    for number, path in enumerate(names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * 1000)
    job = IndexJob(index=str(section.pictures.folder / "files.index"), source=SourceOptions(inputs=(str(folder),)))
    built = section.attempt("build", _timed, job)
    for number, path in enumerate(names[::100]):
        path.write_bytes(b"new %d" % number * 1000)
    updated = section.attempt("update", _timed, job)
    unchanged = section.attempt("nothing_changed", _timed, job)
    section.judge("share_embedded", updated["embedded"] / built["embedded"], at_most=0.03)
    for name in ("seconds", "cpu_s"):
        section.judge(f"share_of_{name}", updated[name] / built[name], at_most=0.03)
        section.judge(f"nothing_changed_share_of_{name}", unchanged[name] / built[name])


def _timed(job: IndexJob) -> Facts:
    embedder = FreeEmbedder()
    os.sync()
    started, used = time.monotonic(), time.process_time()
    summary = update_index(job, embedder=embedder)
    seconds, cpu_s = time.monotonic() - started, time.process_time() - used
    return {
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu_s, 2),
        "images": summary.num_images,
        "embedded": embedder.num_embedded,
    }


SECTIONS: dict[str, Callable[[Section], None]] = {
    "update": update,
    "search_50k": searches(50_000, 25, 0.99, full=True),
    "search_1m": searches(1_000_000, 150, 0.98, full=False),
}

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, None, files=25_000))
