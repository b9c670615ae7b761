from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path

import pytest

from blip2cap.outputs.open import find_plan, open_rows
from tests.commands import invoke, read_rows
from tests.rows import text_row

COLUMNS = {
    "file_name": str,
    "file_name_b64": str,
    "text": str,
    "itm": float,
    "itc": float,
    "status": str,
    "error": str,
    "width": int,
    "height": int,
}


Model = tuple[str, str]


def test_there_is_one_row_for_every_image_and_text(images: Path, here: Path, model: Model) -> None:
    result = invoke("match", images, *model, "--text", "red", "--text", "blue")
    rows = read_rows(here / "matches.jsonl")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "6 ok, 0 failed" in result.stderr
    assert [(row["file_name"], row["text"], row["itm"], row["itc"]) for row in rows] == [
        ("a.png", "red", 1.0, 1.0),
        ("a.png", "blue", 0.0, -1.0),
        ("b.png", "red", 0.0, -1.0),
        ("b.png", "blue", 0.0, -1.0),
        ("sub/c.png", "red", 0.4, -0.2),
        ("sub/c.png", "blue", 0.8, 0.6),
    ]
    assert [{name: type(value) for name, value in row.items()} for row in rows] == [COLUMNS] * 6


def test_texts_come_from_a_file_too_and_a_new_text_adds_rows_only(images: Path, here: Path, model: Model) -> None:
    (here / "texts.txt").write_text("red\n\n blue \n")
    assert invoke("match", images, *model, "--text", "green", "--texts", "texts.txt").exit_code == 0
    before = (here / "matches.jsonl").read_bytes()
    assert [row["text"] for row in read_rows(before)] == ["green", "red", "blue"] * 3
    result = invoke("match", images, *model, "--text", "red", "--text", "a red and blue one", "--json")
    facts = json.loads(result.stdout)
    assert (facts["rows_ok"], facts["rows_there_before"]) == (3, 3)
    assert (here / "matches.jsonl").read_bytes().startswith(before)


def test_a_dry_run_counts_rows_and_writes_nothing(images: Path, here: Path, model: Model) -> None:
    invoke("match", images / "a.png", *model, "--text", "red")
    before = (here / "matches.jsonl").read_bytes()
    arguments = ("match", images / "a.png", images / "b.png", images / "sub" / "c.png", *model)
    result = invoke(*arguments, "--text", "red", "--dry-run", "--json")
    assert json.loads(result.stdout) == {
        "out": "matches.jsonl",
        "images": 3,
        "images_to_do": 2,
        "rows_to_do": 2,
        "rows_there_before": 1,
        "rows_failed_before": 0,
        "rows_failed_not_asked": 0,
        "skipped": {},
    }
    assert (here / "matches.jsonl").read_bytes() == before


CAPTIONS = {"a.png": "a red one", "sub/c.png": "a blue one"}


def write_rows(path: Path) -> Path:
    rows = [text_row(file_name=name, file_name_b64="", text=text) for name, text in CAPTIONS.items()]
    rows.append(text_row(file_name="b.png", file_name_b64="", status="failed", error="truncated"))
    path.write_bytes(b"".join(row.as_json() for row in rows))
    return path


def exported(here: Path, to: str, out: str) -> Path:
    """Write the captions as an export does."""
    rows = write_rows(here / "captions.jsonl")
    result = invoke("export", rows, "--to", to, "-o", here / out, "--images", here / "images")
    assert result.exit_code == 0, result.output
    return here / out


def coco(here: Path) -> Path:
    images = [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "sub/c.png"}, {"id": 5, "file_name": "b.png"}]
    texts = [(3, "a blue one"), (7, "a red one")]
    annotations = [{"id": number, "image_id": image, "caption": text} for number, (image, text) in enumerate(texts)]
    path = here / "coco.json"
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    return path


def lavis(here: Path) -> Path:
    path = here / "lavis.json"
    path.write_text(json.dumps([{"image": name, "caption": text} for name, text in CAPTIONS.items()]))
    return path


KINDS = {
    "rows": lambda here: write_rows(here / "captions.jsonl"),
    "parquet": lambda here: exported(here, "parquet", "captions.parquet"),
    "csv": lambda here: exported(here, "csv", "captions.csv"),
    "coco": coco,
    "lavis": lavis,
    "exported coco": lambda here: exported(here, "coco", "exported.json"),
    "kohya": lambda here: exported(here, "kohya", "meta_cap.json"),
    "kohya lines": lambda here: exported(here, "kohya", "meta_cap.jsonl"),
    "text files": lambda here: exported(here, "txt", "texts"),
    "text files beside the images": lambda here: exported(here, "txt", "images"),
    "imagefolder": lambda here: exported(here, "imagefolder", "images/metadata.jsonl"),
    "imagefolder, the folder": lambda here: exported(here, "imagefolder", "images/metadata.csv").parent,
    "imagefolder, a table": lambda here: exported(here, "imagefolder", "images/metadata.parquet"),
}


@pytest.mark.parametrize("kind", [*KINDS])
def test_every_image_is_compared_with_its_own_captions(kind: str, images: Path, here: Path, model: Model) -> None:
    path = KINDS[kind](here)
    result = invoke("match", images, *model, "--captions", path)
    assert result.exit_code == 0, result.output
    assert "2 ok, 0 failed" in result.stderr
    assert "skipped 1 without caption" in result.stderr
    rows = read_rows(here / "matches.jsonl")
    assert [(row["file_name"], row["text"], row["itm"]) for row in rows] == [
        ("a.png", "a red one", 1.0),
        ("sub/c.png", "a blue one", 0.8),
    ]


def test_lines_of_json_may_begin_with_a_blank_one(images: Path, here: Path, model: Model) -> None:
    (here / "mine.jsonl").write_text('\n{"file_name": "a.png", "text": "red"}\n')
    result = invoke("match", images, *model, "--captions", "mine.jsonl")
    assert (result.exit_code, "1 ok" in result.stderr) == (0, True), result.stderr


def test_names_that_are_not_utf8_are_read_from_an_exported_csv(images: Path, here: Path, model: Model) -> None:
    name = os.fsdecode(b"\xff.png")
    shutil.copy(images / "a.png", images / name)
    row = text_row(file_name="\\xff.png", file_name_b64=base64.b64encode(b"\xff.png").decode(), text="red")
    (here / "captions.jsonl").write_bytes(row.as_json())
    assert invoke("export", "captions.jsonl", "--to", "csv", "-o", "captions.csv").exit_code == 0
    result = invoke("match", images, *model, "--captions", "captions.csv")
    assert (result.exit_code, "1 ok" in result.stderr) == (0, True), result.stderr


def test_names_are_found_from_another_folder_too(images: Path, here: Path, model: Model) -> None:
    invoke("caption", images, "--model", "tiny")
    result = invoke("match", images / "sub", *model, "--captions", "captions.jsonl")
    assert result.exit_code == 0, result.output
    (caption,) = (row["text"] for row in read_rows(here / "captions.jsonl") if row["file_name"] == "sub/c.png")
    assert [(row["file_name"], row["text"]) for row in read_rows(here / "matches.jsonl")] == [("c.png", caption)]


def test_a_caption_of_a_folder_below_is_not_that_of_an_image_of_the_same_name_above(
    images: Path, here: Path, model: Model
) -> None:
    shutil.copy(images / "a.png", images / "c.png")
    (images / "sub" / "c.txt").write_text("a blue one")
    result = invoke("match", images, *model, "--captions", images / "sub")
    assert (result.exit_code, "skipped 3 without caption" in result.stderr) == (0, True), result.stderr
    assert [row["file_name"] for row in read_rows(here / "matches.jsonl")] == ["sub/c.png"]


def test_captions_in_a_folder_of_their_own_below_the_input_are_found_by_name(
    images: Path, here: Path, model: Model
) -> None:
    (here / "texts" / "images").mkdir(parents=True)
    (here / "texts" / "images" / "a.txt").write_text("a red one")
    result = invoke("match", here, *model, "--captions", "texts")
    assert result.exit_code == 0, result.stderr
    assert [row["file_name"] for row in read_rows(here / "matches.jsonl")] == ["images/a.png"]


def test_absolute_names_are_found_through_a_link(images: Path, here: Path, model: Model) -> None:
    (here / "link").symlink_to(images)
    (here / "captions.csv").write_text(f"file_name,text\n{here}/link/a.png,red\n{images}/b.png,red\n")
    result = invoke("match", "link", *model, "--captions", "captions.csv")
    assert (result.exit_code, "2 ok" in result.stderr) == (0, True), result.stderr


def test_captions_of_other_images_are_an_error_that_shows_both_names(images: Path, here: Path, model: Model) -> None:
    (here / "captions.csv").write_text("file_name,text\nother/x.png,red\n")
    result = invoke("match", images, *model, "--captions", "captions.csv")
    assert result.exit_code == 2
    assert 'no image of this run has a caption there. Its 1 captions are of images like "other/x.png"' in result.stderr
    assert 'the run\'s are like "a.png"' in result.stderr
    assert not (here / "matches.jsonl").exists()
    parts = invoke("match", images, *model, "--captions", "captions.csv", "-o", "matches/")
    assert (parts.exit_code, "no image of this run" in parts.stderr) == (2, True)


def test_rows_of_captions_that_were_edited_are_kept_and_counted(images: Path, here: Path, model: Model) -> None:
    command = ("match", images, *model, "--captions", "captions.csv")
    (here / "captions.csv").write_text("file_name,text\na.png,red\nb.png,blue\n")
    assert "existing row" not in invoke(*command).stderr
    assert "existing row" not in invoke(*command).stderr
    (here / "captions.csv").write_text("file_name,text\na.png,red\nb.png,green\n")
    result = invoke(*command)
    assert (result.exit_code, "1 ok, 0 failed, 1 already done" in result.stderr) == (0, True), result.stderr
    assert "matches.jsonl: 1 existing row is of captions that are no longer there" in result.stderr
    assert "existing row" not in invoke(*command, "--overwrite").stderr


def test_a_message_about_captions_names_the_limit(images: Path, here: Path, model: Model) -> None:
    (here / "captions.csv").write_text("file_name,text\nb.png,red\n")
    result = invoke("match", images, *model, "--captions", "captions.csv", "--limit", "1")
    assert (result.exit_code, "Only the first 1 images were looked at (--limit)" in result.stderr) == (2, True)


def test_a_part_holds_fewer_images_if_they_have_several_rows(images: Path, here: Path, model: Model) -> None:
    assert invoke("match", images, *model, "--text", "red", "--text", "blue", "-o", "matches/").exit_code == 0
    plan = find_plan("matches/")
    assert plan is not None
    assert plan.part_size == 5000


def test_a_folder_of_parts_lists_the_captions_of_its_images(images: Path, here: Path, model: Model) -> None:
    (here / "captions.csv").write_text("file_name,text\na.png,red\na.png,blue\nsub/c.png,red\n")
    command = ("match", images, *model, "--captions", "captions.csv", "-o", "matches/", "--part-size", "1")
    result = invoke(*command)
    assert (result.exit_code, "3 ok, 0 failed, skipped 1 without caption" in result.stderr) == (0, True), result.stderr
    rows = [(row.file_name, row.text, row["itm"]) for row in open_rows("matches/")]
    assert rows == [("a.png", "red", 1.0), ("a.png", "blue", 0.0), ("sub/c.png", "red", 0.4)]
    (here / "matches" / "part-00000.parquet").unlink()
    status = invoke("status", "matches/")
    assert "1 ok, 0 failed, 2 missing" in status.stdout
    facts = json.loads(invoke(*command, "--dry-run", "--json").stdout)
    assert (facts["images_to_do"], facts["rows_to_do"], facts["rows_there_before"]) == (1, 2, 1)
    assert invoke(*command).exit_code == 0
    assert [(row.file_name, row.text, row["itm"]) for row in open_rows("matches/")] == rows
    (here / "captions.csv").write_text("file_name,text\na.png,green\n")
    refused = invoke(*command)
    assert (refused.exit_code, "the content of --captions was" in refused.stderr) == (5, True), refused.stderr


def test_a_bad_image_and_a_caption_that_does_not_fit_fail_alone(images: Path, here: Path, model: Model) -> None:
    (images / "bad.png").write_bytes(b"no image")
    texts = {"a.png": "red" * 20, "b.png": "nan", "bad.png": "red", "sub/c.png": "red"}
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in texts.items()]
    (here / "mine.jsonl").write_text("\n".join(lines))
    result = invoke("match", images, *model, "--captions", "mine.jsonl")
    assert result.exit_code == 3
    rows = {row["file_name"]: row for row in read_rows(here / "matches.jsonl")}
    assert {name: (row["error"], row["itm"]) for name, row in rows.items()} == {
        "a.png": ("unsupported", 0.0),
        "b.png": ("unsupported", 0.0),
        "bad.png": ("not_an_image", 0.0),
        "sub/c.png": ("", 0.4),
    }


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def own() -> Path:
    """Return the path of an output that is called as the metadata of imagefolder."""
    Path("own").mkdir()
    return Path("own", "metadata.jsonl")


WRONG = {
    "no text given": lambda: [],
    "--captions and --text exclude each other": lambda: [
        *("--text", "x", "--captions", write("x.csv", "file_name,text\na.png,x\n"))
    ],
    'text "red" is given twice': lambda: ["--text", "red", "--text", "red"],
    "a text is empty": lambda: ["--text", " "],
    "too long": lambda: ["--text", "red " * 20],
    "--texts none.txt: cannot be read": lambda: ["--texts", "none.txt"],
    "--captions none.json: no such file or folder": lambda: ["--captions", "none.json"],
    "results.json[0]: its columns are image_id, caption.": lambda: [
        "--captions",
        write("results.json", '[{"image_id": 1, "caption": "x"}]'),
    ],
    "x.json:1: not valid JSON: neither a list nor an object": lambda: ["--captions", write("x.json", "3")],
    "x.json:1: not valid JSON: ": lambda: ["--captions", write("x.json", "{")],
    "its columns are a, b, c": lambda: ["--captions", write("x.csv", "a,b,c\n1,2,3\n")],
    "has no caption": lambda: ["--captions", write("x.csv", "file_name,text\na.png,\n")],
    "a folder without .txt or .caption files": lambda: ["--captions", "matcher"],
    "x.jsonl:1: no caption but 3": lambda: ["--captions", write("x.jsonl", '{"file_name": "a.png", "text": 3}\n')],
    "x.jsonl:1: no name of an image but '\\ud800.png'": lambda: [
        *("--captions", write("x.jsonl", '{"file_name": "\\ud800.png", "text": "red"}\n'))
    ],
    "x.json annotations[0]: no name of an image but 5": lambda: [
        "--captions",
        write(
            "x.json",
            '{"images": [{"id": 1, "file_name": 5}], "annotations": [{"image_id": 1, "caption": "red"}]}',
        ),
    ],
    "x.json \"\": no name of an image but ''": lambda: ["--captions", write("x.json", '{"": {"caption": "red"}}')],
    "x.csv:2: no file_name_b64 but 'no'": lambda: [
        *("--captions", write("x.csv", "file_name,file_name_b64,text\na.png,no,red\n"))
    ],
    "x.jsonl:1: no JSON: Expecting value": lambda: ["--captions", write("x.jsonl", "red\n")],
    "x.jsonl:1: 3 is not an object": lambda: ["--captions", write("x.jsonl", "3\n")],
    "metadata.jsonl in it is an output of blip2cap. Give": lambda: ["--captions", str(write_rows(own()).parent)],
    "x.csv:3: not valid UTF-8": lambda: ["--captions", write("x.csv", b"file_name,text\na.png,red\nb.png,\xff\n")],
    "annotations[0]: an annotation without caption": lambda: [
        "--captions",
        write("x.json", '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1}]}'),
    ],
    "its rows are answers": lambda: [
        "--captions",
        write("answers.jsonl", text_row(file_name="a.png", file_name_b64="", question="q").as_json().decode()),
    ],
}


@pytest.mark.parametrize("message", [*WRONG])
def test_wrong_options_are_refused_with_the_next_step(message: str, images: Path, here: Path, model: Model) -> None:
    result = invoke("match", images, *model, *WRONG[message]())
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert not (here / "matches.jsonl").exists()


def test_a_model_that_captions_is_refused_and_one_that_fits_named(images: Path, here: Path) -> None:
    result = invoke("match", images, "--model", "tiny", "--text", "red")
    assert result.exit_code == 2
    assert "which cannot match" in result.stderr
    assert "tiny-itm" in result.stderr
