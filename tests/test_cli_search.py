"""`blip2cap search` and `duplicates` on indexes of given vectors: searches by an image of the index need no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip2cap.cli.hits import hit_facts
from blip2cap.index.hits import Hit
from blip2cap.index.query import Query
from tests.commands import invoke, on_terminal
from tests.indexes import make_index
from tests.test_cli_names import STEERING, check, hostile_names
from tests.test_index_sheet import MARKUP, Page
from tests.test_layers import HEAVY, imported_by

COLOURS = {"red.png": (255, 0, 0), "orange.png": (255, 90, 0), "sub/blue.png": (0, 0, 255), "sub/sky.png": (0, 90, 255)}


def vectors_of(colours: list[tuple[int, int, int]]) -> Any:
    rows = np.repeat(np.array(colours, np.float32)[:, None], 2, axis=1)
    return (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float16)


@pytest.fixture
def index(here: Path) -> Path:
    """An index of four plain images, in the current folder."""
    (here / "sub").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(here / name)
    paths = [str(here / name) for name in COLOURS]
    make_index(here / "my.index", vectors_of([*COLOURS.values()]), [*COLOURS], paths=paths)
    return Path("my.index")


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_hits_are_a_table_with_scores_the_best_first(index: Path) -> None:
    result = invoke("search", index, "--like", "red.png", "-k", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in result.stdout.splitlines() if "│" in line]
    assert rows[0] == [f"{255 / (255**2 + 90**2) ** 0.5:.3f}", "orange.png"]
    assert rows[1][0] == "0.000"


def test_hits_are_lines_of_json_on_stdout_or_in_a_file_that_is_not_replaced_unasked(index: Path, here: Path) -> None:
    command = ("search", index, "--like", "red.png", "-k", "2")
    found = objects(invoke(*command, "-o", "-").stdout)
    assert [*found[0]] == ["query", "rank", "file_name", "path", "path_b64", "score"]
    assert [(each["query"], each["rank"], each["file_name"]) for each in found] == [
        ("red.png", 1, "orange.png"),
        ("red.png", 2, found[1]["file_name"]),
    ]
    assert found[0]["path"] == str(here / "orange.png")
    assert invoke(*command, "-o", "hits.jsonl").exit_code == 0
    assert objects(Path("hits.jsonl").read_text()) == found
    refused = invoke(*command, "-o", "hits.jsonl", "--like", "orange.png")
    assert (refused.exit_code, objects(Path("hits.jsonl").read_text())) == (2, found)
    assert "--out hits.jsonl: exists. Use another --out, or --overwrite" in refused.stderr
    assert invoke(*command, "-o", "hits.jsonl", "--min-score", "2", "--overwrite").exit_code == 0
    assert Path("hits.jsonl").read_text() == ""


def test_paths_for_xargs_are_files_ended_by_nul(index: Path, here: Path) -> None:
    result = invoke("search", index, "--like", "red.png", "-0")
    names = result.stdout_bytes.split(b"\0")
    assert names[0] == os.fsencode(here / "orange.png")
    assert len(names) == 4
    assert names[-1] == b""
    assert all(os.path.isfile(name) for name in names[:-1])


def test_a_sheet_shows_the_image_that_was_searched_with_and_the_hits(index: Path) -> None:
    result = invoke("search", index, "--like", "red.png", "-k", "1", "--html", "sheet.html", "-o", "-")
    assert result.exit_code == 0
    assert result.stderr == "sheet.html: 2 images\n"
    assert [each["file_name"] for each in objects(result.stdout)] == ["orange.png"]
    page = Page(Path("sheet.html").read_text(encoding="utf-8"))
    assert [each["alt"] for each in page.all("img")] == ["red.png", "orange.png"]
    assert [each.get("class") for each in page.all("li")] == ["query", None]
    assert page.texts[:5] == ["Search in my.index", "Search in my.index", "4 images, fake", "red.png", "1 image"]
    os.unlink("orange.png")
    result = invoke("search", index, "--like", "red.png", "-k", "1", "--html", "sheet.html", "--overwrite")
    assert (result.exit_code, result.stderr) == (3, "sheet.html: 2 images, 1 of them could not be read\n")
    assert "vanished" in Page(Path("sheet.html").read_text(encoding="utf-8")).texts


def test_paths_and_a_page_may_both_be_asked_for(index: Path, here: Path) -> None:
    result = invoke("search", index, "--like", "red.png", "-k", "1", "-0", "--html", "sheet.html")
    assert (result.exit_code, result.stdout_bytes) == (0, os.fsencode(here / "orange.png") + b"\0")
    page = Page(Path("sheet.html").read_text(encoding="utf-8"))
    assert [each["alt"] for each in page.all("img")] == ["red.png", "orange.png"]


def test_a_hit_shows_no_password() -> None:
    hit = Hit(file_name="http://host/a.png", path="http://user:secret@host/a.png", score=0.5)
    assert hit_facts(hit)["path"] == "http://host/a.png"


def test_the_name_of_a_query_is_text() -> None:
    assert Query(images=("caf\udce9.webp",)).label == "caf\\xe9.webp"


def test_nothing_found_is_said_and_no_error(index: Path) -> None:
    result = invoke("search", index, "--like", "red.png", "--min-score", "0.99")
    assert (result.exit_code, result.stdout) == (0, "no image found\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to search for: give a text"),
        (("",), "the query is empty"),
        (("  ",), "the query is empty"),
        (("cat", "--not", ""), "--not is empty"),
        (("--not", "cat"), "nothing to search for"),
        (("cat", "-k", "0"), "-k 0: expected 1 to 4, the number of images in the index"),
        (("cat", "-k", "5"), "-k 5: expected 1 to 4"),
        (("cat", "--rerank", "0"), "--rerank 0: expected 1 to 4"),
        (("cat", "--rerank", "2", "--like", "red.png"), "--like and --not exclude it"),
        (("--like", "red.png", "-0", "-o", "-"), "-0 and --out exclude each other"),
        (("--like", "red.png", "-o", "hits.csv"), "--out hits.csv: must end in .jsonl"),
        (("--like", "red.png", "--html", "page"), "--html page: must end in .html or .htm"),
        (("--like", "green.png"), "green.png: no image of that name in my.index"),
        (("--like", "red.png", "--include", ""), "--include is empty"),
        (("--like", "red.png", "--include", "no/"), "--include no/: no image in my.index has a name that matches"),
        (("--like", "red.png", "--min-score", "nan"), "--min-score nan: expected a number"),
        (("\udcff boat",), "not valid UTF-8"),
        (("--like", "red.png", "--not", "\udcff"), "not valid UTF-8"),
        (("--image", "green.png"), "--image green.png: no such file"),
        (("-", "-"), "`-` given more than once"),
        (("-",), "standard input has no query"),
        (("cat", "-m", "tiny"), "--model tiny: the index was made with fake"),
    ],
)
def test_wrong_arguments_end_with_2_and_say_what_was_expected(
    index: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = invoke("search", index, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_empty_line_among_queries_is_named(index: Path) -> None:
    result = invoke("search", index, "-", stdin=b"cat\n\ndog\n")
    assert (result.exit_code, "line 2 of standard input is empty" in result.stderr) == (2, True)
    result = invoke("search", index, "-", stdin=b"\xff\n")
    assert (result.exit_code, "not valid UTF-8" in result.stderr) == (2, True)


@pytest.mark.parametrize("command", ["search", "duplicates"])
def test_what_is_no_index_or_a_damaged_one_is_an_error(here: Path, index: Path, command: str) -> None:
    like = ("--like", "red.png") if command == "search" else ()
    (here / "empty").mkdir()
    for name in ("none", "empty", "red.png"):
        result = invoke(command, name, *like)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), name
    for path in sorted(here.rglob("my.index/**/*.*")):
        if path.is_file():
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            result = invoke(command, index, *like)
            assert result.exit_code in ({0, 5} if path.name == "codes.npy" else {5}), path
            path.write_bytes(whole)
    assert invoke(command, index, *like).exit_code == 0


@pytest.mark.parametrize(
    "extra",
    [(), ("--html", "sheet.html"), *(pytest.param(each, marks=pytest.mark.long) for each in (("-0",), ("-o", "-")))],
)
def test_a_search_by_an_image_of_the_index_imports_no_torch(index: Path, here: Path, extra: tuple[str, ...]) -> None:
    imported = imported_by(here, "-m", "blip2cap", "search", str(index), "--like", "red.png", *extra)
    assert "numpy" in imported
    assert not imported & {*HEAVY, "pandas"}  # which pyarrow imports for some calls: half a second


def test_a_reader_that_has_gone_ends_it_silently(index: Path, here: Path) -> None:
    for extra in ("-o-", "-0"):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "blip2cap", "search", "my.index", "--like", "red.png", extra],
            cwd=here,
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b"")


def test_paths_are_not_printed_raw_on_a_terminal(index: Path, here: Path) -> None:
    printed = on_terminal("search", "my.index", "--like", "red.png", "-0", cwd=here)
    assert b"send them to one, e.g. `| xargs -0 ls -l`" in printed
    assert b"\0" not in printed
    assert b"orange.png" in on_terminal("search", "my.index", "--like", "red.png", cwd=here)


def test_near_equal_images_are_groups(index: Path, here: Path) -> None:
    result = invoke("duplicates", index, "--min-score", "0.9")
    assert (result.exit_code, result.stderr) == (0, "my.index: 2 groups, 4 images in them\n")
    groups = objects(result.stdout)
    assert [each["group"] for each in groups] == [1, 2]
    assert sorted(sorted(image["file_name"] for image in each["images"]) for each in groups) == [
        ["orange.png", "red.png"],
        ["sub/blue.png", "sub/sky.png"],
    ]
    assert {image["path"] for each in groups for image in each["images"]} == {str(here / name) for name in COLOURS}
    assert len(objects(invoke("duplicates", index, "--min-score", "0.9", "--max-groups", "1").stdout)) == 1
    assert invoke("duplicates", index).stdout == ""
    result = invoke("duplicates", index, "--min-score", "0.9", "--html", "sheet.html")
    assert result.stdout == ""
    assert result.stderr == "sheet.html: 4 images\nmy.index: 2 groups, 4 images in them\n"
    assert len(Page(Path("sheet.html").read_text(encoding="utf-8")).all("section")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min-score", "0"), "--min-score 0"),
        (("--min-score", "1.1"), "--min-score 1.1"),
        (("--max-groups", "0"), "--max-groups 0: must be 1 or more"),
        (("-o", "x.html"), "--out x.html: must end in .jsonl"),
    ],
)
def test_wrong_arguments_of_duplicates_end_with_2(index: Path, arguments: tuple[str, ...], message: str) -> None:
    result = invoke("duplicates", index, *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert not Path("x.html").exists()


def test_hostile_names_reach_no_terminal_and_no_page_raw(here: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(here / "red.png")
    raw = [*(text.encode() for text in MARKUP), *hostile_names()]
    names = [name.decode("utf-8", "backslashreplace") for name in raw]
    vectors = vectors_of([(255, number % 250, 0) for number in range(len(names))])
    make_index(here / "my.index", vectors, names, paths=[str(here / "red.png")] * len(names))
    command = ("search", "my.index", "--like", names[0], "-k", str(len(names) - 1))
    check(invoke(*command).output)
    lines = invoke(*command, "-o", "-").stdout
    check(lines)
    assert {each["file_name"] for each in objects(lines)} == {*names[1:]}
    assert invoke(*command[:-1], "50", "--html", "sheet.html").exit_code == 0
    content = Path("sheet.html").read_text(encoding="utf-8")
    assert not STEERING.search(content)
    assert {tag for tag, _ in Page(content).elements} <= {
        *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "small", "section", "ol", "li"),
        *("div", "img", "bdi", "footer", "b"),
    }
    check(invoke("duplicates", "my.index", "--min-score", "0.99").output)
    for name in names[::60]:
        check(invoke("search", "my.index", "--like", f"no {name}").output)
        check(invoke("search", f"no {name}", "cat").output)
