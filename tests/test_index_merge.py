"""Segments of an index are merged: which, what is left of them, and what a killed merge leaves."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from blip2cap.errors import OutputRefusedError
from blip2cap.index.catalog import Catalog
from blip2cap.index.index import Index
from blip2cap.index.merge import choose
from blip2cap.tasks import registry
from tests.files import Counting, FastFiles, Killed, Killing
from tests.indexes import ENTRY, FakeEmbedder, fake_vectors
from tests.test_index_update import check, put, update


@pytest.fixture(autouse=True)
def _the_task_of_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TASKS, "embed", ENTRY)


@pytest.mark.parametrize(
    ("kept", "removed", "chosen"),
    [
        ([], [], None),
        ([5], [5], None),
        ([5], [6], slice(0, 1)),
        ([0], [1], slice(0, 1)),
        ([1] * 7, [0] * 7, None),
        ([1] * 8, [0] * 8, slice(0, 8)),
        ([100, *[1] * 7], [0] * 8, None),
        ([100, *[1] * 8], [0] * 9, slice(1, 9)),
        ([100, 8, 8, *[1] * 8], [0] * 11, slice(1, 11)),
        ([100, 9, *[1] * 8], [0] * 10, slice(2, 10)),
        ([*[1] * 7, 100], [0] * 8, slice(0, 8)),
        ([*[9] * 7, 0], [*[0] * 7, 1], slice(7, 8)),
    ],
)
def test_the_newest_are_merged_and_one_that_is_mostly_removed_is_written_anew(kept, removed, chosen):
    assert choose(kept, removed) == chosen


@pytest.mark.parametrize("seed", range(4))
def test_segments_stay_few_and_images_are_written_few_times(seed):
    rng = np.random.default_rng(seed)
    segments: list[int] = []
    num_written = num_images = 0
    for _ in range(2000):
        size = 1 if seed == 0 else int(rng.zipf(1.7)) % 1000 + 1
        segments.append(size)
        num_images += size
        num_written += size
        while (chosen := choose(segments, [0] * len(segments))) is not None:
            total = sum(segments[chosen])
            segments[chosen] = [total]
            num_written += total
        assert len(segments) <= 7 * (1 + np.log2(num_images))
    assert num_written <= num_images * (2 + np.log2(num_images))
    if seed == 0:
        assert len(segments) <= 7 * 4
        assert num_written <= num_images * 6


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(20):
        put(tmp_path / "images" / f"{number:02}.jpg", b"bad" if number == 3 else b"%d" % number)
    return tmp_path / "images"


@pytest.fixture
def index(tmp_path: Path, images: Path) -> Path:
    """An index of eight segments, of which the next update makes two."""
    folder = tmp_path / "index"
    update(folder, images)
    for number in range(7):
        put(images / f"new-{number}.jpg", b"new %d" % number)
        update(folder, images)
    assert len(Catalog.read(folder).segments) == 8
    return folder


def change(images: Path) -> None:
    """Change the images for the update that merges."""
    put(images / "05.jpg", b"5 again")
    put(images / "new-2.jpg", b"bad")
    (images / "new-6.jpg").unlink()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_small_segments_are_merged_without_the_model_and_nothing_else_changes(index, images):
    first = (index / "segment-000001" / "embeddings.parquet").read_bytes()
    change(images)
    embedder = FakeEmbedder()
    summary = update(index, images, embedder=embedder)
    assert embedder.names == ["05.jpg", "new-2.jpg"]
    assert (summary.num_images, summary.num_failed) == (24, 2)
    check(index, images)
    catalog = Catalog.read(index)
    assert [entry.name for entry in catalog.segments] == ["segment-000001", "segment-000010"]
    assert names_in(index) == [".lock", "index.json", "segment-000001", "segment-000010"]
    assert names_in(index / "segment-000010") == [
        *names_in(index / "segment-000001")[:1],
        *("embeddings.parquet", "images-1.arrow", "vectors.npy"),
    ]
    assert (index / "segment-000001" / "embeddings.parquet").read_bytes() == first
    rows = pq.read_table(index / "segment-000010" / "embeddings.parquet").to_pylist()
    assert [row["file_name"] for row in rows] == [*(f"new-{n}.jpg" for n in (0, 1, 3, 4, 5)), "05.jpg", "new-2.jpg"]
    assert [row["error"] for row in rows] == [""] * 6 + ["corrupt"]
    again = FakeEmbedder()
    assert update(index, images, embedder=again, check=True).num_unchanged == 26
    assert again.names == []
    put(images / "new-2.jpg", b"good")
    update(index, images)
    assert Catalog.read(index).merged == ()
    check(index, images)


def test_the_order_of_images_stays(index, images):
    before = Index.open(index).names
    put(images / "z.jpg", b"z")
    update(index, images)
    assert Index.open(index).names == [*before, "z.jpg"]


def test_a_segment_that_is_mostly_removed_is_written_anew_and_one_without_images_dropped(tmp_path, images):
    update(tmp_path / "index", images)
    put(images / "new.jpg", b"N")
    update(tmp_path / "index", images)
    for number in range(11):
        put(images / f"{number:02}.jpg", b"again %d" % number)
    (images / "new.jpg").unlink()
    update(tmp_path / "index", images)
    assert [entry.name for entry in Catalog.read(tmp_path / "index").segments] == ["segment-000004", "segment-000003"]
    assert len(pq.read_table(tmp_path / "index" / "segment-000004" / "embeddings.parquet")) == 9
    check(tmp_path / "index", images)
    for path in sorted(images.iterdir())[1:]:
        path.unlink()
    update(tmp_path / "index", images, allow_removal=True)
    check(tmp_path / "index", images)
    put(images / "other.jpg", b"O")
    (images / "00.jpg").unlink()
    update(tmp_path / "index", images, allow_removal=True)
    check(tmp_path / "index", images)


def test_an_index_without_any_image_is_searched_and_filled_again(tmp_path, images):
    update(tmp_path / "index", images)
    (images / "03.jpg").rename(tmp_path / "03.jpg")
    for path in images.iterdir():
        path.unlink()
    (tmp_path / "03.jpg").rename(images / "03.jpg")
    assert update(tmp_path / "index", images, allow_removal=True).num_images == 0
    put(images / "03.jpg", b"worse")
    (images / "03.jpg").write_bytes(b"bad too")
    update(tmp_path / "index", images)
    empty = Index.open(tmp_path / "index")
    assert empty.search(fake_vectors(b"A")) == []
    assert [*empty.duplicates(0.9)] == []
    put(images / "a.jpg", b"A")
    assert update(tmp_path / "index", images).num_images == 1
    check(tmp_path / "index", images)


class Noting(Counting):
    """Notes the first operation of a merge."""

    first = 0

    def around(self, name: str, operation: Callable[..., Any], *arguments: Any) -> Any:
        if not self.first and name == "open" and arguments[0].name == "merging.tmp":
            self.first = len(self.names)
        return super().around(name, operation, *arguments)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "when", ["within", *(pytest.param(when, marks=pytest.mark.long) for when in ("before", "after"))]
)
def test_a_merge_that_is_killed_at_any_operation_loses_nothing(tmp_path, index, images, when):
    change(images)
    files = Noting()
    shutil.copytree(index, tmp_path / "well")
    update(tmp_path / "well", images, embedder=FakeEmbedder(files=files))
    expected = Index.open(tmp_path / "well").names
    for at, name in [*enumerate(files.names)][files.first :]:
        if when == "within" and name != "write":
            continue
        folder, first = Path(shutil.copytree(index, tmp_path / str(at))), FakeEmbedder(files=Killing(at, when))
        with pytest.raises(Killed):
            update(folder, images, embedder=first)
        assert Index.open(folder).num_images in (24, 26)
        second = FakeEmbedder()
        assert update(folder, images, embedder=second).num_failed == 2
        assert len(first.names) + len(second.names) <= 2 + 1
        check(folder, images)
        assert Index.open(folder).names == expected
        assert update(folder, images, check=True).num_unchanged == 26
        assert len(names_in(folder)) == 4
        shutil.rmtree(folder)


def test_a_disk_without_space_for_a_merge_leaves_the_index_complete(tmp_path, index, images):
    put(images / "z.jpg", b"z")
    marks: list[Path] = []

    class Full(FastFiles):
        def open(self, path: Path, flags: int) -> int:
            if marks and "segment-000010" in path.parts:
                raise OSError(errno.ENOSPC, "No space left on device")
            marks.extend([path] * (path.name == "merging.tmp"))
            return super().open(path, flags)

    for _ in range(2):
        assert update(index, images, embedder=FakeEmbedder(files=Full())).num_images == 27
        check(index, images)
        assert len(Catalog.read(index).segments) == 9
        marks.clear()
    update(index, images)
    assert len(Catalog.read(index).segments) == 2
    check(index, images)


def test_a_damaged_segment_is_not_merged(index, images):
    path = index / "segment-000004" / "embeddings.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    put(images / "z.jpg", b"z")
    for _ in range(2):
        with pytest.raises(OutputRefusedError, match=r"segment-000004/embeddings\.parquet is damaged.*remove"):
            update(index, images)
        assert Index.open(index).num_images == 27
    shutil.rmtree(path.parent)
    embedder = FakeEmbedder()
    update(index, images, embedder=embedder)
    assert embedder.names == ["new-2.jpg"]
    check(index, images)


def test_a_folder_that_was_merged_and_could_not_be_removed_goes_later(index, images, monkeypatch):
    class Keeping(FastFiles):
        def unlink(self, path: Path) -> None:
            if "segment-000003" in path.parts:
                raise PermissionError(errno.EACCES, "Permission denied")
            super().unlink(path)

    put(images / "z.jpg", b"z")
    update(index, images, embedder=FakeEmbedder(files=Keeping()))
    assert (index / "segment-000003" / "vectors.npy").exists()
    check(index, images)
    put(images / "y.jpg", b"y")
    update(index, images)
    check(index, images)
    assert not (index / "segment-000003").exists()
    put(images / "x.jpg", b"x")
    update(index, images)
    assert Catalog.read(index).merged == ()


def test_a_number_of_a_merged_segment_is_not_given_again(tmp_path, images, monkeypatch):
    update(tmp_path / "index", images)
    (images / "new.jpg").write_bytes(b"N")
    update(tmp_path / "index", images)
    (images / "new.jpg").unlink()
    update(tmp_path / "index", images)
    assert Catalog.read(tmp_path / "index").merged == ("segment-000002",)
    put(images / "other.jpg", b"O")
    update(tmp_path / "index", images)
    assert Catalog.read(tmp_path / "index").segments[1].name == "segment-000003"
    check(tmp_path / "index", images)
