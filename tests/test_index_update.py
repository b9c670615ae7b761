"""An index is built and brought up to date: what is embedded, what is removed, and what a killed update leaves."""

from __future__ import annotations

import io
import itertools
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip2cap.decode.trace import trace_path
from blip2cap.errors import InputError, OutputError, OutputLockedError, OutputRefusedError, UsageError
from blip2cap.index import update as module
from blip2cap.index.folder import locked
from blip2cap.index.index import Index
from blip2cap.index.job import IndexJob, IndexSummary
from blip2cap.index.known import Known
from blip2cap.index.update import update_index
from blip2cap.jobs.job import Outcome
from blip2cap.source.inputs import Source
from blip2cap.tasks import registry
from tests.files import ERRORS, Counting, Failing, FastFiles, Killed, Killing
from tests.indexes import ENTRY, FakeEmbedder, fake_vectors, index_job

IMAGES = {
    "a.jpg": b"A",
    "b.jpg": b"B",
    "c/c.jpg": b"C",
    "d.jpg": b"bad",
    "кот.jpg": b"E",
    os.fsdecode(b"\xff.jpg"): b"F",
}


@pytest.fixture(autouse=True)
def _the_task_of_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TASKS, "embed", ENTRY)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name, data in IMAGES.items():
        put(folder / name, data)
    return folder


def put(path: Path, data: bytes, *, mtime_ns: int | None = None) -> None:
    """Write a file; its time moves on by a second unless it is given."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    time = mtime_ns or before + 10**9
    os.utime(path, ns=(time, time))


def update(folder: Path, *inputs: Path, embedder: FakeEmbedder | None = None, **options: Any) -> IndexSummary:
    embedder = embedder or FakeEmbedder()
    return update_index(index_job(folder, *inputs, **options), embedder=embedder, files=embedder.files)


def check(folder: Path, images: Path) -> None:
    """Every good image below a folder is found, by the vectors of its bytes, and nothing else."""
    index = Index.open(folder)
    good = {path: path.read_bytes() for path in images.rglob("*.jpg") if not path.read_bytes().startswith(b"bad")}
    hits = index.search(np.eye(32, dtype=np.float32), k=index.num_images)
    assert Counter(hit.path for hit in hits) == Counter(map(str, good))
    for path, data in good.items():
        name = str(path.relative_to(images)).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        np.testing.assert_array_equal(index.vectors_of(name), fake_vectors(data).astype(np.float32))


def test_an_index_is_built_and_an_update_without_changes_embeds_nothing(tmp_path, images):
    summary = update(tmp_path / "index", images)
    assert (summary.num_images, summary.num_new, summary.num_failed, summary.failed) == (5, 6, 1, {"corrupt": 1})
    assert not summary.complete
    check(tmp_path / "index", images)
    assert sorted(path.name for path in (tmp_path / "index" / "segment-000001").iterdir()) == [
        "codes-1.npy",
        "embeddings.parquet",
        "images-1.arrow",
        "vectors.npy",
    ]
    before = (tmp_path / "index" / "index.json").read_bytes()
    embedder = FakeEmbedder()
    again = update(tmp_path / "index", images, embedder=embedder)
    assert (embedder.names, again.num_unchanged, again.num_new, again.num_failed) == ([], 6, 0, 1)
    assert (tmp_path / "index" / "index.json").read_bytes() == before


def test_the_images_of_an_index_are_in_memory_once(tmp_path, images, monkeypatch):
    made = []

    class Watched(Known):
        def __init__(self, *arguments: Any) -> None:
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(module, "Known", Watched)
    update(tmp_path / "index", images)
    put(images / "new.jpg", b"N")
    with pytest.raises(Killed):
        update(tmp_path / "index", images, embedder=FakeEmbedder(files=Killing(30, "after")))
    assert len(made) == 2
    assert update(tmp_path / "index", images).num_images == 6
    assert len(made) == 3


def test_only_new_and_changed_images_are_embedded_and_gone_ones_are_dropped(tmp_path, images):
    update(tmp_path / "index", images)
    put(images / "new.jpg", b"N")
    put(images / "b.jpg", b"B2")
    put(images / "d.jpg", b"bad again")
    (images / "a.jpg").unlink()
    embedder = FakeEmbedder()
    summary = update(tmp_path / "index", images, embedder=embedder)
    assert embedder.names == ["b.jpg", "d.jpg", "new.jpg"]
    counts = (summary.num_new, summary.num_changed, summary.num_removed, summary.num_unchanged, summary.num_failed)
    assert counts == (1, 2, 1, 3, 1)
    check(tmp_path / "index", images)


def test_a_file_with_a_new_time_and_the_same_content_is_not_embedded_and_hashed_once_only(tmp_path, images):
    update(tmp_path / "index", images)
    put(images / "b.jpg", b"B")
    embedder = FakeEmbedder()
    summary = update(tmp_path / "index", images, embedder=embedder)
    assert (embedder.names, summary.num_unchanged) == ([], 6)
    put(images / "b.jpg", b"b", mtime_ns=(images / "b.jpg").stat().st_mtime_ns)  # a change that size and time hide
    update(tmp_path / "index", images, embedder=embedder)
    assert embedder.names == []


def test_a_changed_image_that_cannot_be_decoded_is_not_found_any_more_and_returns_when_it_is_mended(tmp_path, images):
    update(tmp_path / "index", images)
    put(images / "a.jpg", b"bad now")
    assert update(tmp_path / "index", images).num_failed == 2
    check(tmp_path / "index", images)
    put(images / "a.jpg", b"good")
    assert update(tmp_path / "index", images).num_failed == 1
    check(tmp_path / "index", images)


def test_failed_images_are_tried_again_on_request(tmp_path, images):
    update(tmp_path / "index", images)
    embedder = FakeEmbedder()
    summary = update(tmp_path / "index", images, embedder=embedder, retry_failed=True)
    assert (embedder.names, summary.num_changed, summary.num_failed) == (["d.jpg"], 1, 1)


def test_nothing_is_dropped_when_a_part_of_the_inputs_was_not_walked(tmp_path, images):
    update(tmp_path / "index", images)
    summary = update(tmp_path / "index", images, limit=2)
    assert (summary.num_removed, summary.num_kept, summary.num_images) == (0, 4, 5)
    if os.geteuid():
        (images / "c").chmod(0)
        summary = update(tmp_path / "index", images)
        (images / "c").chmod(0o700)
        assert (summary.num_removed, summary.num_kept, summary.complete) == (0, 1, False)
    check(tmp_path / "index", images)


def test_a_folder_that_was_renamed_is_refused_or_kept_on_request(tmp_path, images):
    update(tmp_path / "index", images)
    other = images.rename(tmp_path / "pictures")
    with pytest.raises(OutputRefusedError, match=r"the input root was .*images.*same_inputs"):
        update(tmp_path / "index", other)
    embedder = FakeEmbedder()
    update(tmp_path / "index", other, embedder=embedder, same_inputs=True)
    assert embedder.names == []
    check(tmp_path / "index", other)


def test_a_list_on_standard_input_is_walked_twice(tmp_path, images, monkeypatch):
    monkeypatch.chdir(images)
    job = index_job(tmp_path / "index", Path("-"))
    summary = update_index(job, embedder=FakeEmbedder(), stdin=io.BytesIO(b"a.jpg\nc/c.jpg\n"))
    assert summary.num_images == 2
    assert Index.open(tmp_path / "index").names == ["a.jpg", "c/c.jpg"]


def test_an_index_of_another_model_is_refused_and_left_as_it_is(tmp_path, images):
    update(tmp_path / "index", images)
    put(images / "new.jpg", b"N")
    with pytest.raises(OutputRefusedError, match='commit was "1", now "2"'):
        update(tmp_path / "index", images, embedder=FakeEmbedder(commit="2"))
    assert Index.open(tmp_path / "index").num_images == 5


def test_a_run_that_is_stopped_keeps_its_images_and_the_next_does_the_rest(tmp_path, images):
    summary = update(tmp_path / "index", images, embedder=FakeEmbedder(stop_after=2))
    assert (summary.num_images, summary.stopped, summary.complete) == (2, True, False)
    embedder = FakeEmbedder()
    update(tmp_path / "index", images, embedder=embedder)
    assert len(embedder.names) == 4
    check(tmp_path / "index", images)
    assert update(tmp_path / "other", images, embedder=FakeEmbedder(stop_after=0)).num_images == 0
    assert update(tmp_path / "other", images).num_images == 5


@pytest.mark.parametrize("case", ["built", "updated"])
@pytest.mark.parametrize(
    "when", ["within", *(pytest.param(when, marks=pytest.mark.long) for when in ("before", "after"))]
)
def test_an_update_that_is_killed_at_any_operation_is_finished_by_the_next(tmp_path, images, case, when):
    def prepare(folder: Path) -> Path:
        if case == "updated":
            shutil.copytree(tmp_path / "built", folder)
        return folder

    if case == "updated":
        update(tmp_path / "built", images)
        (images / "a.jpg").unlink()
        put(images / "b.jpg", b"B2")
        put(images / "new.jpg", b"N")
        put(images / "кот.jpg", b"E")
    files = Counting()
    update(prepare(tmp_path / "well"), images, embedder=FakeEmbedder(files=files))
    check(tmp_path / "well", images)
    num_to_embed = 2 if case == "updated" else 6
    for at, name in enumerate(files.names):
        if when == "within" and name != "write":
            continue
        folder, first = prepare(tmp_path / f"index-{at}"), FakeEmbedder(files=Killing(at, when))
        with pytest.raises(Killed):
            update(folder, images, embedder=first)
        if (folder / "index.json").exists():
            assert Index.open(folder).num_images >= 5 - 2
        second = FakeEmbedder()
        summary = update(folder, images, embedder=second)
        check(folder, images)
        assert len(first.names) + len(second.names) <= num_to_embed + 1
        assert {path.name for path in folder.iterdir() if not path.name.startswith("segment-")} == {
            ".lock",
            "index.json",
        }
        assert summary.num_failed == 1
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "error", ["short", *(pytest.param(name, marks=pytest.mark.long) for name in ("EIO", "ENOSPC"))]
)
def test_any_operation_may_fail(tmp_path, images, error):
    update(tmp_path / "built", images)
    put(images / "b.jpg", b"B2")
    put(images / "new.jpg", b"N")
    shutil.copytree(tmp_path / "built", tmp_path / "well")
    files = Counting()
    update(tmp_path / "well", images, embedder=FakeEmbedder(files=files))
    messages = []
    for at, name in enumerate(files.names):
        if error == "short" and name not in ("read", "write"):
            continue
        folder = Path(shutil.copytree(tmp_path / "built", tmp_path / str(at)))
        failing = FakeEmbedder(files=Failing(at, ERRORS[error]))
        try:
            update(folder, images, embedder=failing)
        except (OutputError, OutputRefusedError, InputError) as problem:
            messages.append(str(problem))
        assert Index.open(folder).num_images >= 4
        update(folder, images)
        check(folder, images)
        shutil.rmtree(folder)
    assert len(messages) > len(files.names) / 2 if error != "short" else not messages
    assert "Errno" not in "".join(messages)


def test_a_file_that_changes_between_a_kill_and_the_next_update_is_embedded_again(tmp_path, images):
    files = Counting()
    update(tmp_path / "well", images, embedder=FakeEmbedder(files=files))
    at = max(at for at, name in enumerate(files.names) if name == "fdatasync")
    with pytest.raises(Killed):
        update(tmp_path / "index", images, embedder=FakeEmbedder(files=Killing(at, "after")))
    put(images / "a.jpg", b"changed")
    second = FakeEmbedder()
    update(tmp_path / "index", images, embedder=second)
    assert second.names == ["a.jpg"]
    check(tmp_path / "index", images)


def test_images_that_may_have_crashed_a_run_are_known_to_the_next(tmp_path, images):
    files = Counting()
    update(tmp_path / "well", images, embedder=FakeEmbedder(files=files))
    for at in [at for at, name in enumerate(files.names) if name == "fdatasync"]:
        with pytest.raises(Killed):
            update(tmp_path / str(at), images, embedder=FakeEmbedder(files=Killing(at, "after")))
        (inner,) = (tmp_path / str(at)).glob("segment-*")
        trace_path(inner / "embeddings.parquet").write_bytes(b"suspects")
        found = []

        class Looking(FakeEmbedder):
            def run(self, source: Source, out: Path, dtype: str) -> Outcome:
                found.append(trace_path(out).read_bytes())  # noqa: B023
                return super().run(source, out, dtype)

        update(tmp_path / str(at), images, embedder=Looking())
        assert found in ([b"suspects"], [])
        assert found or at > files.names.index("replace")
        check(tmp_path / str(at), images)


def test_vectors_and_codes_that_are_missing_or_truncated_are_made_again_without_the_model(tmp_path, images):
    update(tmp_path / "index", images)
    inner = tmp_path / "index" / "segment-000001"
    for name, damage in itertools.product(("vectors.npy", "codes-1.npy"), ("missing", "cut", "other", "empty")):
        content = (inner / name).read_bytes()
        if damage == "missing":
            (inner / name).unlink()
        else:
            (inner / name).write_bytes({"cut": content[:-1], "other": b"PK\3\4", "empty": b""}[damage])
        with pytest.raises(OutputRefusedError, match=rf"{name} is damaged: .*rebuilt"):
            Index.open(tmp_path / "index")
        embedder = FakeEmbedder()
        update(tmp_path / "index", images, embedder=embedder)
        assert embedder.names == []
        assert (inner / name).read_bytes() == content
    check(tmp_path / "index", images)


def test_the_images_of_a_segment_whose_folder_was_removed_are_embedded_again(tmp_path, images):
    update(tmp_path / "index", images)
    put(images / "new.jpg", b"N")
    update(tmp_path / "index", images)
    shutil.rmtree(tmp_path / "index" / "segment-000001")
    embedder = FakeEmbedder()
    update(tmp_path / "index", images, embedder=embedder)
    assert len(embedder.names) == 6
    check(tmp_path / "index", images)


def test_two_updates_of_one_index_exclude_each_other_and_searching_is_possible(tmp_path, images):
    update(tmp_path / "index", images)
    with locked(tmp_path / "index", FastFiles()):
        with pytest.raises(OutputLockedError, match="by another process"):
            update(tmp_path / "index", images)
        check(tmp_path / "index", images)


def test_places_that_cannot_hold_an_index_are_refused(tmp_path, images):
    (tmp_path / "file").write_bytes(b"")
    for place, error, message in (
        (images, OutputRefusedError, "other files"),
        (tmp_path / "file", OutputRefusedError, "a file"),
        (tmp_path / "no" / "index", OutputError, "parent folder"),
    ):
        with pytest.raises(error, match=message):
            update(place, images)
    with pytest.raises(UsageError, match="on this machine"):
        IndexJob(index="s3://bucket/index", source=index_job(tmp_path, images).source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image found"):
        update(tmp_path / "index", tmp_path / "empty")


def test_the_centre_is_computed_anew_when_the_index_has_grown(tmp_path, images):
    update(tmp_path / "index", images)
    before = Index.open(tmp_path / "index").catalog
    for number in range(20):
        put(images / f"{number}.jpg", b"%d" % number)
    update(tmp_path / "index", images)
    index = Index.open(tmp_path / "index")
    assert (before.codes, index.catalog.codes) == ("codes-1.npy", "codes-2.npy")
    assert before.centre != index.catalog.centre
    check(tmp_path / "index", images)
    query = index.vectors_of("3.jpg")
    assert index.search(query, k=1, exact=False)[0].file_name == "3.jpg"
