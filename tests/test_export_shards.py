from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path

import pytest

from blip2cap.errors import UsageError
from tests.exports import HOSTILE, CrashAtSync, caption, failure, make_images, names_in, run, run_named
from tests.files import Killed


def samples(shard: Path) -> list[dict[str, bytes]]:
    """Read a shard by the rules of webdataset: neighbours that share their name up to the first dot are one sample."""
    found: list[dict[str, bytes]] = []
    with tarfile.open(shard, "r|") as stream:
        for member in stream:
            assert member.isreg()
            match = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name)
            assert match, member.name
            key, suffix = match.groups()
            if not found or found[-1]["__key__"] != key.encode("utf-8", "surrogateescape"):
                found.append({"__key__": key.encode("utf-8", "surrogateescape")})
            assert suffix not in found[-1]
            file = stream.extractfile(member)
            assert file is not None
            found[-1][suffix] = file.read()
    return found


def shards(folder: Path) -> list[list[dict[str, bytes]]]:
    return [samples(path) for path in sorted(folder.iterdir())]


def test_images_texts_and_rows_come_back_as_samples(tmp_path: Path) -> None:
    names = [f"{'a/' * (number % 3)}{number}.PNG" for number in range(len(HOSTILE))]
    root = make_images(tmp_path / "imgs", *names)
    rows = [*map(caption, names, HOSTILE)]
    run(tmp_path, [*rows, failure("bad.jpg")], "webdataset", root=root, out=tmp_path / "wds")
    assert names_in(tmp_path / "wds") == ["00000.tar"]
    (read,) = shards(tmp_path / "wds")
    for sample, row in zip(read, rows, strict=True):
        assert list(sample) == ["__key__", "png", "txt", "json"]
        assert sample["__key__"].decode() == os.path.splitext(row.file_name)[0]
        assert sample["png"] == (root / row.file_name).read_bytes()
        assert sample["txt"].decode() == row.text
        assert json.loads(sample["json"]) == row.as_dict()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("photo.v2.final.jpg", "photo%2Ev2%2Efinal"),
        ("v1.0/photo.jpg", "v1.0/photo"),
        (".hidden.jpg", "%2Ehidden"),
        ("50% off.jpg", "50% off"),
        ("no_suffix", "no_suffix"),
        ("text.txt", "text"),
        ("../away.jpg", None),
    ],
)
def test_a_name_with_dots_keeps_a_key_of_its_own(tmp_path: Path, name: str, key: str | None) -> None:
    root = make_images(tmp_path / "imgs", name)
    run(tmp_path, [caption(name)], "webdataset", root=root, out=tmp_path / "wds")
    ((sample,),) = shards(tmp_path / "wds")
    assert sample["__key__"].decode() == (key or str(tmp_path / "away").lstrip("/"))
    assert len(sample) == 4


def test_names_that_are_equal_but_for_the_folder_are_two_samples(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", "a/1.jpg", "b/1.jpg", "1.jpg")
    run(tmp_path, map(caption, ("a/1.jpg", "b/1.jpg", "1.jpg")), "webdataset", root=root, out=tmp_path / "wds")
    assert [sample["__key__"] for sample in shards(tmp_path / "wds")[0]] == [b"a/1", b"b/1", b"1"]


def test_one_key_for_two_images_is_a_collision(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", "1.jpg", "1.png", "2.jpg")
    rows = [*map(caption, ("1.jpg", "2.jpg", "1.png"))]
    assert run(tmp_path, rows, "webdataset", root=root, out=tmp_path / "wds").left_out == {"collision": 2}
    assert [sample["__key__"] for sample in shards(tmp_path / "wds")[0]] == [b"2"]


def test_a_shard_has_so_many_samples(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(7)]
    root = make_images(tmp_path / "imgs", *names)
    rows = [*map(caption, names), caption("gone.jpg")]
    summary, left = run_named(tmp_path, rows, "webdataset", root=root, out=tmp_path / "wds", shard_size=3)
    assert (summary.num_written, left) == (7, {"gone.jpg": "missing_image"})
    assert names_in(tmp_path / "wds") == ["00000.tar", "00001.tar", "00002.tar"]
    assert [len(shard) for shard in shards(tmp_path / "wds")] == [3, 3, 1]


def test_equal_samples_make_equal_archives_with_the_real_bytes_of_names(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9/" + b"x" * 120 + b".jpg")
    root = make_images(tmp_path / "imgs", name)
    for out in ("one", "two"):
        run(tmp_path, [caption(name)], "webdataset", root=root, out=tmp_path / out)
        os.utime(root / name)
    assert (tmp_path / "one/00000.tar").read_bytes() == (tmp_path / "two/00000.tar").read_bytes()
    ((sample,),) = shards(tmp_path / "one")
    assert sample["__key__"] == b"caf\xe9/" + b"x" * 120


def test_a_folder_with_archives_is_refused(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", "1.jpg")
    (tmp_path / "wds").mkdir()
    (tmp_path / "wds/mine.tar").touch()
    for out, reason in (("wds", "holds .tar files already"), ("imgs/1.jpg", "no folder")):
        with pytest.raises(UsageError, match=reason):
            run(tmp_path, [caption("1.jpg")], "webdataset", root=root, out=tmp_path / out, existing="overwrite")
    assert names_in(tmp_path / "wds") == ["mine.tar"]


def test_a_crash_leaves_whole_shards_only(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(5)]
    root = make_images(tmp_path / "imgs", *names)
    files = CrashAtSync(2)  # the first shard and its name
    with pytest.raises(Killed):
        run(tmp_path, map(caption, names), "webdataset", root=root, out=tmp_path / "wds", shard_size=2, files=files)
    assert names_in(tmp_path / "wds") == ["00000.tar"]
    assert len(samples(tmp_path / "wds/00000.tar")) == 2
