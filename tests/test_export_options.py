from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blip2cap.errors import UsageError
from blip2cap.outputs.export.first_pass import NameHashes
from blip2cap.outputs.export.item import Items
from blip2cap.outputs.export.options import ExportOptions, parse_affixes
from tests.exports import caption


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
    assert keys.repeated() == {NameHashes.hash("name 17"), NameHashes.hash("name 9999")}
    assert not NameHashes().repeated()


def test_a_missing_folder_of_images_is_no_place(tmp_path: Path) -> None:
    item = Items(ExportOptions(to="txt"), "").item(caption("../b.jpg"), 1)
    assert (item.image_path, item.path_in_root, item.path_in_out, item.has_image) == ("", "", "", False)
