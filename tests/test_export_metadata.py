from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pandas
import pytest

from blip2cap.errors import UsageError
from tests.exports import HOSTILE, answer, caption, failure, make_images, names_in, run, run_named

NAMES = [f"{'deep/er/' * (number % 2)}{number} кот,\"'.jpg" for number in range(len(HOSTILE))]


def load_imagefolder(folder: Path, cache: Path) -> list[dict[str, Any]]:
    """Read a folder as a trainer does: every image decoded."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(cache), split="train")
    return [dict(row) for row in loaded]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("out", [None, "metadata.csv", "metadata.parquet"])
def test_hugging_face_reads_back_every_image_with_its_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str | None
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    texts = HOSTILE if out != "metadata.csv" else [text.replace("\0", "").replace("\r", "\n") for text in HOSTILE]
    root = make_images(tmp_path / "imgs", *NAMES, "without_a_row.jpg")
    rows = [*map(caption, NAMES, texts), failure("without_a_row.jpg"), caption("gone.jpg")]
    where: dict[str, Any] = {"out": root / out} if out else {}
    summary, left = run_named(tmp_path, rows, "imagefolder", root=root, **where)
    assert (summary.num_written, summary.num_failed, left) == (len(NAMES), 1, {"gone.jpg": "missing_image"})
    read = load_imagefolder(root, tmp_path / "cache")
    assert sorted(row["text"] for row in read) == sorted(texts)
    assert {row["image"].size for row in read} == {(4, 3)}


def test_every_line_of_metadata_is_a_line_for_every_reader(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", *NAMES)
    run(tmp_path, map(caption, NAMES, HOSTILE), "imagefolder", root=root, column="caption")
    lines = (root / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file_name": name, "caption": text} for name, text in zip(NAMES, HOSTILE, strict=True)
    ]


def test_metadata_as_csv_holds_captions_as_they_are(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", *NAMES)
    run(tmp_path, map(caption, NAMES, HOSTILE), "imagefolder", root=root, out=root / "metadata.csv")
    with open(root / "metadata.csv", encoding="utf-8", newline="") as file:
        csv.field_size_limit(1 << 20)
        assert list(csv.DictReader(file)) == [
            {"file_name": name, "text": text} for name, text in zip(NAMES, HOSTILE, strict=True)
        ]


def test_names_are_relative_to_the_file_wherever_it_lies_in_the_tree(tmp_path: Path) -> None:
    root = make_images(tmp_path / "set/imgs", "a.jpg", "sub/b.jpg")
    rows = [caption("a.jpg", "one"), caption("sub/b.jpg", "two"), caption(str(root / "sub/../a.jpg"), "three")]
    for out, expected in (
        (tmp_path / "set", {"imgs/sub/b.jpg": "two"}),
        (root / "sub", {"b.jpg": "two"}),
    ):
        summary, left = run_named(tmp_path, rows, "imagefolder", root=root, out=out)
        assert set(left.values()) <= {"collision", "outside"}
        (path,) = out.glob("metadata.jsonl")
        read = [json.loads(line) for line in path.read_text().splitlines()]
        assert {row["file_name"]: row["text"] for row in read} == expected
        assert summary.num_written == 1
        path.unlink()


def test_what_the_reader_would_not_find_is_left_out(tmp_path: Path) -> None:
    latin = os.fsdecode(b"caf\xe9.jpg")
    root = make_images(tmp_path / "imgs", "a.jpg", latin)
    make_images(tmp_path, "away.jpg")
    rows = [caption(name) for name in ("a.jpg", latin, "gone.jpg", "../away.jpg")]
    for to, out in (("imagefolder", root), ("kohya", tmp_path / "k.json")):
        _, left = run_named(tmp_path, rows, to, root=root, out=out)
        assert left == {"caf\\xe9.jpg": "unnameable", "gone.jpg": "missing_image", "../away.jpg": "outside"}, to


def test_a_second_file_of_metadata_is_refused(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", "sub/a.jpg")
    rows = [caption("sub/a.jpg")]
    (root / "sub/metadata.csv").touch()
    with pytest.raises(UsageError, match=r"sub/metadata\.csv is there: imagefolder reads one"):
        run(tmp_path, rows, "imagefolder", root=root)
    (root / "sub/metadata.csv").unlink()
    run(tmp_path, rows, "imagefolder", root=root)
    with pytest.raises(UsageError, match=r"metadata\.jsonl exists"):
        run(tmp_path, rows, "imagefolder", root=root)
    with pytest.raises(UsageError, match=r"metadata\.jsonl is there"):
        run(tmp_path, rows, "imagefolder", root=root, out=root / "metadata.csv")
    assert run(tmp_path, rows, "imagefolder", root=root, existing="overwrite").num_written == 1
    assert names_in(root) == ["metadata.jsonl", "sub/a.jpg"]


def test_kohya_has_a_line_for_each_caption(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", "a.jpg")
    rows = [caption("a.jpg", "one", texts=("one", "two\nlines"))]
    for which, text in ((None, "one"), ("all", "one\ntwo lines")):
        run(tmp_path, rows, "kohya", root=root, out=tmp_path / "k.json", which=which, existing="overwrite")
        assert json.loads((tmp_path / "k.json").read_text()) == {"a": {"caption": text}}


def test_metadata_under_a_name_that_nobody_looks_for_is_refused(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", "a.jpg")
    with pytest.raises(UsageError, match="a file called metadata"):
        run(tmp_path, [caption("a.jpg")], "imagefolder", root=root, out=root / "captions.jsonl")


def test_images_of_a_list_of_paths_are_found_from_the_folder_of_the_metadata(tmp_path: Path) -> None:
    make_images(tmp_path, "imgs/a.jpg", "imgs/..b.jpg", "away/c.jpg")
    (tmp_path / "work").mkdir()
    rows = [caption("../imgs/a.jpg"), caption(str(tmp_path / "imgs/..b.jpg")), caption("../away/c.jpg")]
    _, left = run_named(tmp_path, rows, "imagefolder", root=tmp_path / "work", out=tmp_path / "imgs")
    assert left == {"../away/c.jpg": "outside"}
    lines = (tmp_path / "imgs/metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == ["a.jpg", "..b.jpg"]


@pytest.mark.parametrize("to", ["imagefolder", "kohya", "webdataset", "xmp", "txt"])
def test_formats_that_need_the_images_ask_where_they_are(tmp_path: Path, to: str) -> None:
    options = {"out": tmp_path / "out"} if to == "webdataset" else {}
    with pytest.raises(UsageError, match="Give images DIR"):
        run(tmp_path, [caption("a.jpg")], to, **options)


def test_kohya_names_images_by_their_stems_below_the_folder(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", *NAMES)
    run(tmp_path, map(caption, NAMES, HOSTILE), "kohya", root=root, out=tmp_path / "meta.json")
    content = (tmp_path / "meta.json").read_text(encoding="utf-8")
    expected = {os.path.splitext(name)[0]: {"caption": text} for name, text in zip(NAMES, HOSTILE, strict=True)}
    assert json.loads(content) == expected
    assert content == json.dumps(expected, indent=2)  # what the reader's own tools write


def test_kohya_without_a_row_is_an_empty_object(tmp_path: Path) -> None:
    run(tmp_path, [failure("a.jpg")], "kohya", root=make_images(tmp_path / "imgs"), out=tmp_path / "meta.json")
    assert json.loads((tmp_path / "meta.json").read_text()) == {}


def test_kohya_stems_collide_and_full_paths_do_not(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", "cat.png", "cat.jpg", "dog.jpg")
    rows = [caption("cat.png", "one"), caption("cat.jpg", "two"), caption("dog.jpg", "three")]
    summary = run(tmp_path, rows, "kohya", root=root, out=tmp_path / "a.json")
    assert (summary.left_out, json.loads((tmp_path / "a.json").read_text())) == (
        {"collision": 2},
        {"dog": {"caption": "three"}},
    )
    run(tmp_path, rows, "kohya", root=root, out=tmp_path / "b.json", full_path=True)
    assert json.loads((tmp_path / "b.json").read_text()) == {
        str(root / name): {"caption": text}
        for name, text in zip(("cat.png", "cat.jpg", "dog.jpg"), ("one", "two", "three"), strict=True)
    }


def test_kohya_lines_hold_path_caption_and_size(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", *NAMES)
    make_images(tmp_path, "away.jpg")
    rows = [*map(caption, NAMES, HOSTILE), caption("../away.jpg")]
    assert run(tmp_path, rows, "kohya", root=root, out=tmp_path / "k.jsonl").left_out == {}
    read = pandas.read_json(tmp_path / "k.jsonl", lines=True)
    assert list(read["image_path"]) == [*(str(root / name) for name in NAMES), str(tmp_path / "away.jpg")]
    assert list(read["caption"]) == [*HOSTILE, "a cat"]
    assert [*read["image_size"]] == [[4, 3]] * len(rows)
    assert all(os.path.isfile(path) for path in read["image_path"])


def test_kohya_with_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.json"):
        run(tmp_path, [caption("a.jpg")], "kohya", root=tmp_path, out=tmp_path / "meta.txt")


def test_answers_are_the_texts_of_their_images(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", "a.jpg")
    rows = [answer("a.jpg", "what?", "a cat"), answer("a.jpg", "where?", "here")]
    run(tmp_path, rows, "imagefolder", root=root, question="where?", column="place", prefix={"": "at "})
    assert json.loads((root / "metadata.jsonl").read_text()) == {"file_name": "a.jpg", "place": "at here"}
