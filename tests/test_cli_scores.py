"""Scores of `match` in `show` and `export`: the worst rows, a histogram, cut-offs, several texts of an image."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import pytest
from PIL import Image

from blip2cap.cli.histogram import bins, lines
from blip2cap.tasks.match import match_schema
from tests.commands import invoke, read_rows
from tests.rows import text_row

SCORES = (
    ("a.png", "a red one", 0.9, 0.5),
    ("a.png", "a pink one", 0.95, 0.4),
    ("a.png", "a car", 0.1, 0.1),
    ("b.png", "a dog", 0.3, 0.2),
    ("c.png", "a cat", 0.7, 0.3),
)
TEXTS = ("txt", "kohya", "imagefolder", "coco", "webdataset", "labelstudio", "xmp")


@pytest.fixture
def matches(here: Path) -> Path:
    """Scores of three images, and a failed row of a fourth."""
    row = match_schema().row
    rows = [
        row(file_name=name, text=text, itm=itm, itc=itc, status="ok", width=8, height=6)
        for name, text, itm, itc in SCORES
    ]
    rows.append(row(file_name="d.png", text="a bird", status="failed", error="truncated"))
    (here / "images").mkdir()
    for name in "abcd":
        Image.new("RGB", (8, 6)).save(here / "images" / f"{name}.png")
    (here / "matches.jsonl").write_bytes(b"".join(row.as_json() for row in rows))
    return here / "matches.jsonl"


def shown(*arguments: str | Path) -> list[str]:
    """Return the texts of the rows that `show` prints, in order."""
    result = invoke("show", *arguments)
    assert result.exit_code == 0, result.output
    cells = [[cell.strip() for cell in line.split("│")] for line in result.stdout.splitlines() if "│" in line]
    return [row[2] for row in cells]


def test_the_worst_and_the_best_rows_are_shown_in_order(matches: Path) -> None:
    assert shown(matches, "--worst", "2", "--by", "itm") == ["a car", "a dog"]
    assert shown(matches, "--worst", "2") == ["a car", "a dog"]
    assert shown(matches, "--best", "9", "--by", "itc") == ["a red one", "a pink one", "a cat", "a dog", "a car"]


def test_a_histogram_says_what_a_cut_off_keeps(matches: Path) -> None:
    result = invoke("show", matches, "--histogram", "itm")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["itm", "rows", "from", "here", "up"]
    assert lines[1].split() == ["0.10", "to", "0.15", "1", "5", "100.0%", "#" * 20]
    (found,) = (line for line in lines if line.startswith("0.70"))
    assert found.split()[3:6] == ["1", "3", "60.0%"]
    assert lines[-1].startswith("5 rows, 1 failed and not counted; lowest 0.1,")


@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [0.5], [-1.0, -0.999], [3.0, 1e6], [0.05 * number for number in range(21)], [-7.0, 7.0, 0.0]]
)
def test_every_value_is_in_one_bin_and_limits_are_round(values: list[float]) -> None:
    found = bins(values)
    assert sum(each.count for each in found) == len(values)
    assert found[0].low <= min(values) <= max(values) <= found[-1].high
    assert len(found) <= 22
    for each in found:
        assert each.num_kept == sum(value >= each.low - 1e-9 for value in values), each


@pytest.mark.parametrize(
    "values",
    [[0.1, 0.1 + 1e-17], [0.3, 0.1 + 0.2], [0.5, 1e22], [-1e308, 1e308], [1.7e308], [0.0, 5e-324], [0.0, 1e-13]],
)
def test_extreme_values_have_a_histogram(values: list[float]) -> None:
    found = bins(values)
    assert sum(each.count for each in found) == len(values)
    assert found[0].num_kept == len(values)
    text = [*lines(array("d", values), name="itm", num_failed=0)]
    assert len(text) == len(found) + 2
    assert max(map(len, text)) < 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--worst", "1", "--best", "1"], "exclude each other"),
        (["--by", "itm"], "no effect without --worst or --best"),
        (["--worst", "1", "--by", "text"], "no column text of numbers. It has itm, itc, width, height"),
        (["--histogram", "nothing"], "no column nothing of numbers"),
    ],
)
def test_wrong_options_of_show_are_refused(arguments: list[str], message: str, matches: Path) -> None:
    result = invoke("show", matches, *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_a_column_of_any_task_can_be_sorted(here: Path) -> None:
    rows = [text_row(file_name=f"{number}.jpg", text=f"text {number}", num_tokens=number) for number in (3, 1, 2)]
    (here / "captions.jsonl").write_bytes(b"".join(row.as_json() for row in rows))
    assert shown("captions.jsonl", "--best", "2", "--by", "num_tokens") == ["text 3", "text 2"]
    assert "no column itm of numbers" in invoke("show", "captions.jsonl", "--worst", "1").stderr


def test_rows_below_a_cut_off_are_left_out_and_counted(matches: Path, here: Path) -> None:
    result = invoke("export", matches, "--to", "jsonl", "-o", "kept.jsonl", "--min-itm", "0.5", "--min-itc", "0.35")
    assert (result.exit_code, "2 written" in result.stderr) == (0, True), result.stderr
    assert "1 failed row left out, 3 below the cut-off left out" in result.stderr
    assert [row["text"] for row in read_rows(here / "kept.jsonl")] == ["a red one", "a pink one"]
    facts = json.loads(invoke("export", matches, "--to", "csv", "-o", "x.csv", "--min-itm", "0.7", "--json").stdout)
    assert (facts["rows"], facts["written"], facts["below_cut_off"]) == (6, 3, 2)


def test_texts_of_an_image_become_one_entry_with_the_best_first(matches: Path, here: Path) -> None:
    result = invoke("export", matches, "--to", "coco", "-o", "coco.json", "--images", "images", "--min-itm", "0.25")
    assert result.exit_code == 0, result.stderr
    content = json.loads((here / "coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png", "c.png"]
    names = {image["id"]: image["file_name"] for image in content["images"]}
    assert [(names[each["image_id"]], each["caption"]) for each in content["annotations"]] == [
        ("a.png", "a pink one"),
        ("a.png", "a red one"),
        ("b.png", "a dog"),
        ("c.png", "a cat"),
    ]
    invoke("export", matches, "--to", "txt", "-o", "texts", "--images", "images", "--min-itm", "0.5", "--which", "all")
    assert (here / "texts" / "a.txt").read_text() == "a pink one\na red one"
    assert not (here / "texts" / "b.txt").exists()


def test_rows_of_a_text_that_was_added_later_join_those_of_their_image(matches: Path, here: Path) -> None:
    added = [
        match_schema().row(file_name=name, text="red", itm=0.8, itc=0.5, status="ok") for name in ("a.png", "c.png")
    ]
    with open(matches, "ab") as file:
        file.writelines(row.as_json() for row in added)
    command = ("export", matches, "--images", "images", "--min-itm", "0.5", "--which", "all")
    result = invoke(*command, "--to", "txt", "-o", "texts")
    assert (result.exit_code, "2 written" in result.stderr) == (0, True), result.stderr
    assert (here / "texts" / "a.txt").read_text() == "a pink one\na red one\nred"
    assert (here / "texts" / "c.txt").read_text() == "red\na cat"
    invoke(*command, "--to", "coco", "-o", "coco.json")
    content = json.loads((here / "coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "c.png"]
    assert len(content["annotations"]) == 5


@pytest.mark.parametrize("to", TEXTS)
def test_scores_are_exported_as_captions_are(to: str, matches: Path, here: Path) -> None:
    """The same content as that of captions with the texts that are kept, the best of each image."""
    kept = {"a.png": "a pink one", "c.png": "a cat"}
    rows = [text_row(file_name=name, text=text, width=8, height=6) for name, text in kept.items()]
    (here / "captions.jsonl").write_bytes(b"".join(row.as_json() for row in rows))
    which = [] if to == "xmp" or to == "imagefolder" else ["--which", "first"]
    names = {"kohya": "meta_cap.json", "coco": "out.json", "labelstudio": "out.json"}
    written = []
    for results, least in (("captions.jsonl", []), ("matches.jsonl", ["--min-itm", "0.5"])):
        folder = here / f"{to}-{results}"
        folder.mkdir()
        out = folder / names.get(to, "")
        if to == "imagefolder":
            out = here / "images" / "metadata.jsonl"
        command = ("export", results, "--to", to, "-o", out, "--images", "images", "--existing", "overwrite")
        result = invoke(*command, *which, *least)
        assert (result.exit_code, "2 written" in result.stderr) == (0, True), result.stderr
        if to == "imagefolder":
            (here / "images" / "metadata.jsonl").rename(folder / "metadata.jsonl")
        written.append({path.name: _content(path) for path in folder.iterdir()})
    assert written[0] == written[1]


def _content(path: Path) -> object:
    """Return the content of a file; of COCO without the numbers, of an archive without the rows in it."""
    if path.suffix == ".tar":
        return sorted(name for name in ("a", "c") if name.encode() in path.read_bytes())
    text = path.read_text()
    if path.name == "out.json" and "annotations" in text:
        content = json.loads(text)
        return [image["file_name"] for image in content["images"]], [each["caption"] for each in content["annotations"]]
    return text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-itm", "50"], "--min-itm 50: must be from 0 to 1"),
        (["--min-itc", "-2"], "--min-itc -2: must be from -1 to 1"),
    ],
)
def test_cut_offs_have_limits(arguments: list[str], message: str, matches: Path) -> None:
    result = invoke("export", matches, "--to", "csv", "-o", "x.csv", *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize("to", ["jsonl", "coco"])
def test_captions_have_no_scores_to_cut(to: str, here: Path) -> None:
    (here / "captions.jsonl").write_bytes(text_row(file_name="a.png", text="a").as_json())
    result = invoke("export", "captions.jsonl", "--to", to, "-o", "out", "--min-itm", "0.5")
    assert (result.exit_code, "the rows have no itm" in result.stderr) == (2, True), result.stderr
    assert not (here / "out").exists()
