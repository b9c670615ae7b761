from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blip2cap.errors import UsageError
from blip2cap.outputs.export.images import Images
from blip2cap.outputs.export.item import Items
from blip2cap.outputs.export.name_hashes import NameHashes
from blip2cap.outputs.export.options import ExportOptions, parse_affixes
from tests.exports import caption, make_images


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a photo of ", {"": "a photo of "}),
        ("a = b", {"": "a = b"}),
        ("cats=nice", {"": "cats=nice"}),
        ("cats/=a cat, ", {"cats": "a cat, "}),
        ("./pets//cats/=x=y/=z", {"pets/cats": "x=y/=z"}),
        ("/data/cats/=abs", {"/data/cats": "abs"}),
        ("./=all", {"": "all"}),
        ("=cats/=text", {"": "cats/=text"}),
        ("/=top", {"/": "top"}),
        ("", {"": ""}),
    ],
)
def test_a_value_is_for_a_folder_if_a_slash_stands_before_its_first_equals_sign(value, expected) -> None:
    assert parse_affixes("--prefix", (value,)) == expected


def test_a_folder_is_given_once() -> None:
    assert parse_affixes("--prefix", ("a/=1", "a/b/=2", "3")) == {"a": "1", "a/b": "2", "": "3"}
    for twice in (("a/=1", "./a//=2"), ("1", "=2")):
        with pytest.raises(UsageError, match="given before"):
            parse_affixes("--prefix", twice)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.jpg", "all cat."),
        ("pets/x.jpg", "pets cat."),
        ("pets/dogs/x.jpg", "pets cat."),
        ("pets/cats/x.jpg", "cats cat!"),
        ("pets/cats/deep/er/x.jpg", "cats cat!"),
        ("./pets//cats/x.jpg", "cats cat!"),
        ("petshop/x.jpg", "all cat."),
        ("pets", "all cat."),
        ("/data/x.jpg", "data cat."),
        ("/x.jpg", "all cat."),
    ],
)
def test_the_longest_folder_that_holds_an_image_decides(name: str, text: str) -> None:
    prefixes = parse_affixes("--prefix", ("all ", "pets/=pets ", "pets/cats/=cats ", "/data/=data ", "none/=x"))
    suffixes = parse_affixes("--suffix", (".", "pets/cats/=!"))
    items = Items(ExportOptions(to="csv", out="x", prefix=prefixes, suffix=suffixes), "")
    assert items.item(caption(name, "cat"), 1).text == text
    assert "none" in items.unmatched


@pytest.mark.parametrize(
    ("name", "path_in_root", "path_in_out"),
    [
        ("a/b.jpg", "a/b.jpg", "a/b.jpg"),
        ("./a/../b.jpg", "b.jpg", "b.jpg"),
        ("../b.jpg", "", "data/b.jpg"),
        ("../../../../b.jpg", "", "b.jpg"),
        ("/data/imgs/a.jpg", "a.jpg", "a.jpg"),
        ("/data/imgs2/a.jpg", "", "data/imgs2/a.jpg"),
        ("//data/a.jpg", "", "data/a.jpg"),
    ],
)
def test_an_image_has_a_place_in_the_tree_or_a_name_that_stays_below_any_folder(
    name, path_in_root, path_in_out
) -> None:
    item = Items(ExportOptions(to="txt"), "/data/imgs").item(caption(name), 1)
    assert (item.path_in_root, item.path_in_out) == (path_in_root, path_in_out)


WRONG: dict[str, dict[str, Any]] = {
    "--to gif: must be one of txt": {"to": "gif"},
    "--existing never: must be one of skip": {"existing": "never"},
    "--extension has no effect with --to csv; it is for txt": {"to": "csv", "extension": ".txt"},
    "--results has no effect with --to txt; it is for coco": {"results_only": True},
    "--prefix has no effect with --to jsonl": {"to": "jsonl", "prefix": {"": "x"}},
    "--shard-size 0: must be 1 or more": {"to": "webdataset", "shard_size": 0},
    "--existing prepend is for --to txt": {"to": "csv", "existing": "prepend"},
    "--separator has no effect without": {"separator": ";"},
    "--extension txt: expected a dot": {"extension": "txt"},
    "--extension .: expected a dot": {"extension": "."},
    "--extension ./../x: expected a dot": {"extension": "./../x"},
    "--column file_name: the name is taken": {"to": "csv", "column": "file_name"},
    "not valid UTF-8": {"prefix": {"": "\udcff"}},
    "--out -: standard output takes csv, jsonl, coco, labelstudio, not parquet.": {"to": "parquet", "out": "-"},
    "--which last: expected first, all or random:SEED": {"which": "last"},
    "--which random: expected first": {"which": "random"},
    "--which has no effect with --to csv": {"to": "csv", "which": "all"},
    "--which all: --to imagefolder takes one caption": {"to": "imagefolder", "which": "all"},
    "--which all: --results takes one caption": {"to": "coco", "results_only": True, "which": "all"},
    "--which all: --existing append takes one caption": {"existing": "append", "which": "all"},
    "--url-prefix has no effect with --to coco; it is for labelstudio": {"to": "coco", "url_prefix": "https://x/"},
}


@pytest.mark.parametrize("message", WRONG)
def test_options_that_mean_nothing_are_refused(message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ExportOptions(**{"to": "txt", **WRONG[message]})
    assert message in caught.value.message


def test_repeated_names_are_found_among_many() -> None:
    keys = NameHashes()
    for number in range(10_000):
        keys.add(f"name {number}")
    assert not keys.repeated()
    for name in ("name 17", "name 9999", "name 17", "\udcff"):
        keys.add(name)
    assert keys.repeated() == {NameHashes.hash("name 17"): 3, NameHashes.hash("name 9999"): 2}
    assert not NameHashes().repeated()


def test_a_missing_folder_of_images_is_no_place(tmp_path: Path) -> None:
    item = Items(ExportOptions(to="txt"), "").item(caption("../b.jpg"), 1)
    assert (item.image_path, item.path_in_root, item.path_in_out, Images().has(item)) == ("", "", "", False)


@pytest.mark.parametrize(
    ("name", "archive", "member", "path_in_out"),
    [
        ("a/x.tar#b/1.jpg", "/data/a/x.tar", "b/1.jpg", "a/x/b/1.jpg"),
        ("x.TAR.gz#1.jpg", "/data/x.TAR.gz", "1.jpg", "x/1.jpg"),
        ("x.tar#../../../1.jpg", "/data/x.tar", "../../../1.jpg", "x/1.jpg"),
        ("x.tar#//etc/1.jpg", "/data/x.tar", "//etc/1.jpg", "x/etc/1.jpg"),
        ("/else/x.parquet#17", "/else/x.parquet", "17", "else/x/17"),
        ("../x.parquet#17", "/data/../x.parquet", "17", "x/17"),
        ("s3://bucket/a/x.tar#1.jpg", "s3://bucket/a/x.tar", "1.jpg", "bucket/a/x/1.jpg"),
        ("x.tar#y.tar#1.jpg", "/data/x.tar", "y.tar#1.jpg", "x/y.tar#1.jpg"),
        ("x.tar.d/#1.jpg", "", "", "x.tar.d/#1.jpg"),
        ("C#.parquetry#1.jpg", "", "", "C#.parquetry#1.jpg"),
    ],
)
def test_a_member_has_a_place_below_a_folder_that_is_called_as_its_archive(
    name: str, archive: str, member: str, path_in_out: str
) -> None:
    item = Items(ExportOptions(to="txt"), "/data").item(caption(name), 1)
    assert (item.archive, item.member, item.path_in_out) == (archive, member, path_in_out)
    assert bool(item.image_path) == (not member)


def test_a_file_that_is_called_as_a_member_is_a_file(tmp_path: Path) -> None:
    make_images(tmp_path, "x.tar#1.jpg")
    item = Items(ExportOptions(to="txt"), str(tmp_path)).item(caption("x.tar#1.jpg"), 1)
    assert (item.member, item.image_path) == ("", str(tmp_path / "x.tar#1.jpg"))


def test_a_folder_for_a_prefix_may_be_that_of_an_archive() -> None:
    items = Items(ExportOptions(to="csv", out="x", prefix=parse_affixes("--prefix", ("x/a/=in a, ",))), "")
    assert [items.item(caption(name), 1).text for name in ("x.tar#a/1.jpg", "x.tar#1.jpg")] == ["in a, a cat", "a cat"]


def test_a_random_caption_depends_on_the_seed_and_the_image_alone() -> None:
    rows = [caption(f"{number}.jpg", "0", texts=tuple(map(str, range(9)))) for number in range(20)]
    texts = {}
    for seed in ("1", "2"):
        items = Items(ExportOptions(to="txt", which=f"random:{seed}"), "")
        texts[seed] = [items.item(row, 1).text for row in rows]
        assert [items.item(row, 7).text for row in reversed(rows)] == texts[seed][::-1]
    assert texts["1"] != texts["2"]
    assert len(set(texts["1"])) > 3
