"""Rows of members of archives and tables, exported to formats that need the images."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blip2cap.outputs.export import images
from blip2cap.records import ImageRef
from blip2cap.source.tar import TarArchive
from tests.archives import make_tar
from tests.commands import TINY, draw_scenes, invoke, read_rows
from tests.exports import caption, failure, names_in, run, run_named
from tests.pictures import photo
from tests.test_export_shards import shards


def picture(color: int, kind: str = "png") -> bytes:
    """Return an image of 4 x 3 pixels that differs from those of other colors."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), (color, 0, 0)).save(stream, kind)
    return stream.getvalue()


MEMBERS = {f"a/{number}.png": picture(number) for number in range(5)}


def make_table(path: Path, values: list[Any]) -> Path:
    pq.write_table(pa.table({"image": values, "label": list(range(len(values)))}), path)
    return path


def image_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names_in(folder) if not name.endswith((".txt", ".jsonl"))}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_shards_in_shards_out(here: Path, suffix: str) -> None:
    mode = "w:gz" if suffix == ".tar.gz" else "w"
    for name in ("x", "y"):
        make_tar(here / f"{name}{suffix}", {**MEMBERS, "a/0.txt": b"old caption", "a/0.json": b"{}"}, mode)
    rows = [caption(f"{name}{suffix}#{member}", member) for name in ("x", "y") for member in MEMBERS]
    summary = run(
        here, [*rows, failure(f"y{suffix}#gone.png")], "webdataset", root=here, out=here / "out", shard_size=4
    )
    assert (summary.num_written, summary.left_out) == (10, {})
    read = [sample for shard in shards(here / "out") for sample in shard]
    assert [sample["__key__"].decode() for sample in read] == [f"{name}/a/{n}" for name in "xy" for n in range(5)]
    assert [sample["png"] for sample in read] == [*MEMBERS.values()] * 2
    assert [sample["txt"].decode() for sample in read] == [*MEMBERS] * 2
    assert [json.loads(sample["json"]) for sample in read] == [row.as_dict() for row in rows]


def test_rows_of_a_table_get_the_suffix_of_their_format(here: Path) -> None:
    values = [{"bytes": picture(number, kind), "path": "cat.x"} for number, kind in enumerate(("jpeg", "tiff", "webp"))]
    make_table(here / "x.parquet", [*values, {"bytes": b"no image", "path": None}])
    rows = [caption(f"x.parquet#{number}") for number in (2, 0, 1, 3, 4, -1)]
    summary, left = run_named(here, rows, "webdataset", root=here, out=here / "out")
    assert left == dict.fromkeys(["x.parquet#3", "x.parquet#4", "x.parquet#-1"], "missing_image")
    ((first, second, third),) = shards(here / "out")
    assert [sample["__key__"] for sample in (first, second, third)] == [b"x/2", b"x/0", b"x/1"]
    assert (first["webp"], second["jpg"], third["tif"]) == tuple(values[number]["bytes"] for number in (2, 0, 1))
    summary = run(here, rows, "txt", root=here, out=here / "texts")
    assert (summary.num_written, summary.left_out) == (3, {"missing_image": 3})
    assert [*image_files(here / "texts")] == ["x/0.jpg", "x/1.tif", "x/2.webp"]


def test_texts_and_images_are_extracted_together(here: Path) -> None:
    (here / "sub").mkdir()
    make_tar(here / "sub/x.tar", MEMBERS)
    rows = [caption(f"sub/x.tar#{name}", name) for name in MEMBERS]
    for out, existing in (("out", "skip"), ("out", "overwrite"), ("out", "append")):
        summary = run(here, rows, "txt", root=here, out=here / out, existing=existing)
        assert summary.num_written + summary.left_out["existing"] == 5
        assert image_files(here / "out") == {f"sub/x/{name}": image for name, image in MEMBERS.items()}
        assert (here / "out/sub/x/a/3.txt").read_text() == "a/3.png"
    assert run(here, rows, "xmp", root=here).left_out == {"in_archive": 5}


def test_kohya_finds_the_extracted_images_by_the_keys(here: Path) -> None:
    make_tar(here / "x.tar", MEMBERS)
    rows = [caption(f"x.tar#{name}", name) for name in MEMBERS]
    (here / "set").mkdir()
    run(here, rows, "kohya", root=here, out=here / "set/meta.json", prefix={"": "a "})
    read = json.loads((here / "set/meta.json").read_text())
    assert read == {f"x/a/{number}": {"caption": f"a a/{number}.png"} for number in range(5)}
    assert all((here / "set" / f"{key}.png").is_file() for key in read)
    run(here, rows, "kohya", root=here, out=here / "set/full.json", full_path=True)
    assert all(Path(key).read_bytes() in MEMBERS.values() for key in json.loads((here / "set/full.json").read_text()))
    assert run(here, rows, "kohya", root=here).left_out == {"in_archive": 5}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_hugging_face_reads_what_was_extracted_of_a_table(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setenv("HF_HOME", str(here / "home"))
    make_table(here / "x.parquet", [*MEMBERS.values()])
    rows = [caption(f"x.parquet#{number}", str(number)) for number in range(5)]
    assert run(here, rows, "imagefolder", root=here, out="set").num_written == 5
    loaded = datasets.load_dataset("imagefolder", data_dir="set", cache_dir=str(here / "cache"), split="train")
    assert {row["text"]: row["image"].getpixel((0, 0))[0] for row in loaded} == {str(n): n for n in range(5)}


HOSTILE: Mapping[str, bytes] = {
    "../../up.png": picture(1),
    "/etc/abs.png": picture(2),
    "a/../../b.png": picture(3),
    "link/c.png": picture(4),
    f"{'x' * 300}.png": picture(5),
    "there.png": picture(6),
    "dangling.png": picture(7),
}


@pytest.mark.parametrize("to", ["txt", "imagefolder", "kohya"])
def test_no_name_leads_an_image_out_and_no_file_is_written_over(here: Path, to: str) -> None:
    make_tar(here / "x.tar", HOSTILE)
    out = here / "deep/out"
    (out / "x").mkdir(parents=True)
    (here / "away").mkdir()
    (out / "x/link").symlink_to(here / "away")
    (out / "x/there.png").write_bytes(picture(99))
    (out / "x/dangling.png").symlink_to(here / "away/new.png")
    rows = [caption(f"x.tar#{name}") for name in HOSTILE]
    where = out if to != "kohya" else out / "meta.json"
    _, left = run_named(here, rows, to, root=here, out=where, existing="overwrite")
    assert left.pop("x.tar#dangling.png") in ("collision", "outside")
    assert left == {
        "x.tar#link/c.png": "outside",
        f"x.tar#{'x' * 300}.png": "unwritable",
        "x.tar#there.png": "collision",
    }
    assert (out / "x/there.png").read_bytes() == picture(99)
    written = {name for name in names_in(here / "deep") if name.endswith(".png")}
    assert written == {f"out/x/{name}" for name in ("up.png", "etc/abs.png", "b.png", "there.png")}
    assert names_in(here / "away") == []


def test_members_that_are_too_large_or_gone_are_left_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 2000)
    make_tar(
        here / "x.tar", {"small.png": picture(1), "large.png": bytes(2001), "notes.txt": b"", "last.png": picture(2)}
    )
    (here / "y.tar").write_bytes(b"damaged" * 999)
    names = ["x.tar#large.png", "x.tar#gone.png", "x.tar#notes.txt", "y.tar#a.png", "z.tar#a.png", "z.parquet#1"]
    rows = [*map(caption, names), caption("x.tar#small.png"), caption("x.tar#last.png")]
    for dry_run in (True, False):
        summary, left = run_named(here, rows, "txt", root=here, out=here / "out", dry_run=dry_run)
        assert (summary.num_written, left) == (2, dict.fromkeys(names, "missing_image"))


def make_double_tar(path: Path, mode: str = "w") -> Path:
    """Write a tar in which the first name comes again as the last one."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, image in [*MEMBERS.items(), ("a/0.png", picture(99))]:
            info = tarfile.TarInfo(name)
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    return path


def test_rows_may_be_in_any_order_as_retried_ones_are(here: Path) -> None:
    make_double_tar(here / "x.tgz", "w:gz")
    make_double_tar(here / "y.tar")
    (here / "z.tgz").write_bytes((here / "x.tgz").read_bytes()[:-30])  # without its end, which is not needed
    order = [3, 1, 4, 0, 2]
    rows = [caption(f"{name}#a/{number}.png") for name in ("x.tgz", "y.tar", "z.tgz") for number in order]
    rows[7:7] = [caption("y.tar#missing.png")]
    rows[2:2] = [caption("x.tgz#missing.png")]
    run(here, rows, "webdataset", root=here, out=here / "out")
    read = {sample["__key__"].decode(): sample["png"] for sample in shards(here / "out")[0]}
    assert read == {f"{name}/a/{number}": MEMBERS[f"a/{number}.png"] for name in "xyz" for number in order}


def test_members_that_are_gone_do_not_begin_a_compressed_archive_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_begun = 0

    class CountedArchive(TarArchive):
        def refs(self, *arguments: Any) -> Iterator[ImageRef]:
            nonlocal num_begun
            num_begun += 1
            return super().refs(*arguments)

    monkeypatch.setattr(images, "TarArchive", CountedArchive)
    make_double_tar(here / "x.tgz", "w:gz")
    rows = [caption(f"x.tgz#{name}") for number in range(5) for name in (f"gone{number}.png", f"a/{number}.png")]
    summary = run(here, rows, "webdataset", root=here, out=here / "out")
    assert (summary.num_written, summary.left_out, num_begun) == (5, {"missing_image": 5}, 2)


def test_archives_behind_urls_are_read_too(here: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    make_tar(here / "x.tar", MEMBERS)
    fsspec.filesystem("memory").pipe("/exports/x.tar", (here / "x.tar").read_bytes())
    rows = [caption(f"memory://exports/x.tar#{name}") for name in MEMBERS]
    assert run(here, rows, "txt", out=here / "out").num_written == 5
    assert image_files(here / "out") == {f"exports/x/{name}": image for name, image in MEMBERS.items()}


def test_a_run_over_shards_and_tables_is_exported_with_its_images(here: Path) -> None:
    draw_scenes(here / "imgs", 2)
    scenes = {path.name: path.read_bytes() for path in sorted((here / "imgs").iterdir())}
    make_tar(here / "x.tar", scenes)
    pq.write_table(pa.table({"thumbnail": [b""] * 2, "picture": [*scenes.values()]}), here / "y.parquet")
    photo(4, 3).save(here / "z.png")
    command = ("caption", "x.tar", "y.parquet", "z.png", "--image-column", "picture", *TINY)
    assert invoke(*command).exit_code == 0
    result = invoke("export", "captions.jsonl", "--to", "txt", "-o", "out")
    assert (result.exit_code, result.stderr) == (0, "txt, out: 5 written, 4 images extracted\n")
    assert image_files(here / "out") == {
        f"{name}/{file}": scenes[f"00{n}.png"]
        for name, n, file in (("x", 0, "000.png"), ("x", 1, "001.png"), ("y", 0, "0.png"), ("y", 1, "1.png"))
    }
    for columns, name in zip(read_rows(here / "captions.jsonl"), ("x/000", "x/001", "y/0", "y/1", "z"), strict=True):
        assert (here / f"out/{name}.txt").read_text() == columns["text"]
    result = invoke("export", "captions.jsonl", "--to", "txt")
    assert result.exit_code == 3
    assert "x.tar#000.png: in_archive: its image is in an archive or a table; --out PATH extracts it" in result.stderr
    os.chdir("imgs")  # names are relative to the folder of the run, not to the current one
    result = invoke("export", "../captions.jsonl", "--to", "webdataset", "-o", "../wds")
    assert (result.exit_code, len(shards(here / "wds")[0])) == (0, 5)
