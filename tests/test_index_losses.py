"""An update keeps embeddings, and leaves files of others alone, when something outside of it is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip2cap.errors import ImageError, InputError, OutputRefusedError
from blip2cap.index import changes
from blip2cap.index.index import Index
from blip2cap.tasks import registry
from tests import indexes
from tests.files import Counting, FastFiles, Killed, Killing
from tests.indexes import ENTRY, FakeEmbedder
from tests.test_index_update import check, put, update


@pytest.fixture(autouse=True)
def _the_task_of_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TASKS, "embed", ENTRY)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in "abcd":
        put(tmp_path / "images" / f"{name}.jpg", name.encode())
    return tmp_path / "images"


@pytest.fixture
def index(tmp_path: Path, images: Path) -> Path:
    """An index of two segments, of which the first has a second list."""
    update(tmp_path / "index", images)
    shutil.copy(tmp_path / "index" / "index.json", tmp_path / "older.json")
    put(images / "a.jpg", b"A2")
    put(images / "new.jpg", b"N")
    update(tmp_path / "index", images)
    return tmp_path / "index"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", ["lost", "older"])
def test_segments_that_index_json_does_not_list_are_never_removed(tmp_path, images, index, case):
    before = content(index)
    shutil.move(index / "index.json", tmp_path / "saved.json")
    if case == "older":
        shutil.copy(tmp_path / "older.json", index / "index.json")
    with pytest.raises(OutputRefusedError, match=r"segment-000002: complete.*Restore index\.json from a copy") as error:
        update(index, images)
    assert error.value.exit_code == 5
    assert ("segment-000001" in str(error.value)) == (case == "lost")
    shutil.copy(tmp_path / "saved.json", index / "index.json")
    assert content(index) == before
    embedder = FakeEmbedder()
    update(index, images, embedder=embedder)
    assert embedder.names == []
    check(index, images)


def test_an_older_index_json_of_a_segment_that_has_a_newer_list_removes_nothing(tmp_path, images):
    folder = tmp_path / "index"
    update(folder, images)
    shutil.copy(folder / "index.json", tmp_path / "older.json")
    (images / "a.jpg").unlink()
    update(folder, images)
    shutil.move(folder / "index.json", tmp_path / "saved.json")
    shutil.copy(tmp_path / "older.json", folder / "index.json")
    before = content(folder)
    with pytest.raises(OutputRefusedError, match=r"images-1\.arrow is damaged: it is missing"):
        update(folder, images)
    assert content(folder) == before
    shutil.copy(tmp_path / "saved.json", folder / "index.json")
    assert update(folder, images).num_unchanged == 3


def test_a_list_that_is_missing_is_named_by_every_command(index, images):
    (path,) = (index / "segment-000001").glob("images-*.arrow")
    path.unlink()
    messages = []
    for command in (lambda: Index.open(index), lambda: update(index, images)):
        with pytest.raises(OutputRefusedError) as error:
            command()
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"{path} is damaged: it is missing. Restore it from a copy, or remove {path.parent}.")


def test_images_of_a_list_that_cannot_be_read_keep_their_embeddings(tmp_path, images):
    listed = tmp_path / "list"
    listed.write_text("".join(f"{images / name}.jpg\n" for name in "abcd"))
    update(tmp_path / "index", files_from=(str(listed),))
    images.rename(tmp_path / "unmounted")
    summary = update(tmp_path / "index", files_from=(str(listed),))
    assert (summary.num_images, summary.num_kept, summary.num_failed, summary.complete) == (4, 4, 0, False)
    (tmp_path / "unmounted").rename(images)
    embedder = FakeEmbedder()
    assert update(tmp_path / "index", files_from=(str(listed),), embedder=embedder).complete
    assert embedder.names == []
    assert Index.open(tmp_path / "index").num_images == 4


@pytest.mark.parametrize("code", ["permission", "timeout", "unreachable", "vanished", "unreadable"])
def test_a_changed_image_that_cannot_be_read_keeps_its_embedding_unless_its_content_is_bad(
    tmp_path, images, monkeypatch, code
):
    update(tmp_path / "index", images)
    put(images / "a.jpg", b"A2")

    def fail(*_: object) -> bytes:
        raise ImageError(code, "")

    with monkeypatch.context() as patch:
        patch.setattr(changes, "read", fail)
        summary = update(tmp_path / "index", images)
    assert (summary.num_images, summary.num_kept, summary.complete) == (4, 1, False)
    put(images / "a.jpg", b"bad")
    summary = update(tmp_path / "index", images)
    assert (summary.num_images, summary.num_kept, summary.num_failed) == (3, 0, 1)


def test_a_row_that_failed_because_its_file_vanished_meanwhile_does_not_replace_an_embedding(
    tmp_path, images, monkeypatch
):
    update(tmp_path / "index", images)
    for name in ("a.jpg", "b.jpg", "new.jpg"):
        put(images / name, b"bad " + name.encode())
    row = indexes.fake_row

    def vanished(ref, data):
        if ref.name == "b.jpg":
            return row(ref, data)
        return indexes.SCHEMA.row(file_name=ref.name, file_name_b64="", status="failed", error="vanished")

    monkeypatch.setattr(indexes, "fake_row", vanished)
    summary = update(tmp_path / "index", images)
    counts = (summary.num_images, summary.num_kept, summary.num_changed, summary.num_new, summary.num_failed)
    assert counts == (3, 1, 1, 1, 2)
    monkeypatch.undo()
    monkeypatch.setitem(registry.TASKS, "embed", ENTRY)
    put(images / "a.jpg", b"A3")
    put(images / "b.jpg", b"B3")
    put(images / "new.jpg", b"N")
    update(tmp_path / "index", images)
    check(tmp_path / "index", images)


def test_files_and_folders_of_others_in_a_segment_are_left_alone(index, images):
    inner = index / "segment-000001"
    (inner / "@eaDir").mkdir()
    (inner / "notes.txt").write_text("mine")
    (inner / "images-9.arrow").mkdir()  # cannot be removed
    put(images / "later.jpg", b"L")
    update(index, images)
    check(index, images)
    assert (inner / "@eaDir").is_dir()
    assert (inner / "notes.txt").read_text() == "mine"


def test_a_sweep_that_fails_is_no_error(tmp_path, images, index):
    class Keeping(FastFiles):
        def unlink(self, path: Path) -> None:
            if path.name in ("images-2.arrow", "plan.arrow"):
                raise PermissionError(13, "Permission denied")
            super().unlink(path)

    put(images / "b.jpg", b"B3")
    update(index, images, embedder=FakeEmbedder(files=Keeping()))
    assert len([*(index / "segment-000001").glob("images-*.arrow")]) == 2
    check(index, images)
    assert update(index, images).num_unchanged == 5
    assert len([*(index / "segment-000001").glob("images-*.arrow")]) == 1


def flip(path: Path, at: int, bit: int = 1) -> bytes:
    """Change one bit of a file; return what it was."""
    before = path.read_bytes()
    damaged = bytearray(before)
    damaged[at] ^= bit
    path.write_bytes(damaged)
    return before


@pytest.mark.parametrize("name", ["vectors.npy", "codes-1.npy"])
def test_a_flipped_bit_is_found_on_request_and_mended_without_the_model(index, images, name):
    (path,) = {*index.glob("segment-000001")}
    codes = (path / "codes-1.npy").read_bytes()
    before = flip(path / name, -5)
    update(index, images)
    assert (path / name).read_bytes() != before
    for _ in range(2):
        embedder = FakeEmbedder()
        assert update(index, images, embedder=embedder, check=True).num_unchanged == 5
        assert embedder.names == []
        assert ((path / name).read_bytes(), (path / "codes-1.npy").read_bytes()) == (before, codes)


def test_codes_of_damaged_vectors_are_made_again_too(tmp_path, images):
    update(tmp_path / "index", images)
    inner = tmp_path / "index" / "segment-000001"
    before = flip(inner / "vectors.npy", -1, 0x80)  # a sign
    for number in range(20):
        put(images / f"{number}.jpg", b"%d" % number)
    update(tmp_path / "index", images)  # computes the centre and all codes again
    wrong = (inner / "codes-2.npy").read_bytes()
    update(tmp_path / "index", images, check=True)
    assert (inner / "vectors.npy").read_bytes() == before
    assert (inner / "codes-2.npy").read_bytes() != wrong


@pytest.mark.parametrize(("name", "reason"), [("images-*.arrow", "checksum differs"), ("embeddings.parquet", "CRC")])
def test_a_flipped_bit_of_what_cannot_be_made_again_is_found_on_request(index, images, name, reason):
    (path,) = index.glob(f"segment-000001/{name}")
    if reason == "CRC":
        group = pq.read_metadata(path).row_group(0)
        columns = (group.column(number) for number in range(group.num_columns))
        flip(path, next(each for each in columns if "embedding" in each.path_in_schema).data_page_offset + 100)
    else:
        flip(path, path.read_bytes().index(b"d.jpg"))
    with pytest.raises(OutputRefusedError, match=rf"{path.name} is damaged: .*{reason}.*embedded again"):
        update(index, images, check=True)


@pytest.mark.parametrize("without", [False, True])
def test_a_search_notices_numbers_that_no_row_has(index, without):
    vectors = Index.open(index).vectors_of("c.jpg")
    both = np.concatenate([vectors, -vectors])  # the wrong number may be large or small
    flip(index / "segment-000001" / "vectors.npy", -1, 0x40)  # the highest bit of an exponent
    with pytest.raises(OutputRefusedError, match=r"vectors\.npy is damaged: .*above 1\.01.*with check"):
        Index.open(index).search(both, negative=np.eye(1, 32) if without else None, exact=True)


@pytest.mark.parametrize("name", ["vectors.npy", "index.json"])
def test_counts_that_differ_are_damage(index, images, name):
    inner = index / "segment-000001"
    (inner / "vectors.npy").unlink()
    if name == "index.json":
        catalog = json.loads((index / name).read_bytes())
        catalog["segments"][0]["num_vectors"] += 1
        (index / name).write_text(json.dumps(catalog))
    else:
        table = pq.read_table(inner / "embeddings.parquet")
        pq.write_table(pa.concat_tables([table, table]), inner / "embeddings.parquet", write_page_checksum=True)
    with pytest.raises(OutputRefusedError, match=r"embeddings\.parquet is damaged: expected . embeddings, found"):
        update(index, images)
    assert not [*inner.glob("vectors*")]


@pytest.mark.parametrize("also", [(), (".lock",), (".lock", "segment-000001/mine.txt"), ("index.json",)])
def test_a_folder_of_others_is_left_as_it_is(tmp_path, images, also):
    folder = tmp_path / "theirs"
    for name in ("holiday.txt", *also):
        put(folder / name, b"{}")
    before = content(folder)
    with pytest.raises((OutputRefusedError, InputError), match=r"other files, such as holiday|not of blip2cap"):
        update(folder, images)
    (folder / "holiday.txt").unlink()
    if "segment-000001/mine.txt" in also:
        with pytest.raises(OutputRefusedError, match="such as segment-000001"):
            update(folder, images)
    assert content(folder) == {name: data for name, data in before.items() if name != "holiday.txt"}


@pytest.mark.parametrize("killed", [False, True])
def test_what_systems_add_to_a_folder_is_left_alone_and_any_file_beside_a_build_that_was_killed(
    tmp_path, images, killed
):
    folder = tmp_path / "index"
    if killed:
        files = Counting()
        update(tmp_path / "other", images, embedder=FakeEmbedder(files=files))
        with pytest.raises(Killed):
            update(folder, images, embedder=FakeEmbedder(files=Killing(files.names.index("fdatasync"), "after")))
        assert not (folder / "index.json").exists()
    name = "notes.txt" if killed else ".DS_Store"
    put(folder / name, b"theirs")
    update(folder, images)
    check(folder, images)
    assert (folder / name).read_bytes() == b"theirs"


def test_most_of_an_index_is_removed_on_request_only(index, images):
    before = content(index)
    for name in "abc":
        (images / f"{name}.jpg").unlink()
    with pytest.raises(OutputRefusedError, match=r"3 of its 5 images are not among the inputs.*allow_removal"):
        update(index, images)
    assert content(index) == before
    assert update(index, images, allow_removal=True).num_removed == 3
    check(index, images)
    (images / "d.jpg").unlink()
    assert update(index, images).num_removed == 1  # a half
    with pytest.raises(OutputRefusedError, match="1 of its 1"):
        put(images / "other.jpg", b"O")
        update(index, images, include=("other.jpg",))
