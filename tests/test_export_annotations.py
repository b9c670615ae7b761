from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.exports import HOSTILE, CrashAtSync, answer, caption, failure, names_in, run
from tests.files import Killed

NAMES = [f"sub/{number}.jpg" for number in range(len(HOSTILE))]


def test_coco_has_every_image_once_and_its_caption_by_its_id(tmp_path: Path) -> None:
    rows = [failure("bad.jpg"), *map(caption, NAMES, HOSTILE), failure("worse.jpg")]
    summary = run(tmp_path, rows, "coco", out=tmp_path / "coco.json")
    assert (summary.num_written, summary.num_failed) == (len(NAMES), 2)
    read = json.loads((tmp_path / "coco.json").read_text(encoding="utf-8"))
    assert list(read) == ["images", "annotations"]
    images = {image["id"]: image for image in read["images"]}
    assert len(images) == len({annotation["id"] for annotation in read["annotations"]}) == len(NAMES)
    by_name = {images[entry["image_id"]]["file_name"]: entry["caption"] for entry in read["annotations"]}
    assert by_name == dict(zip(NAMES, HOSTILE, strict=True))
    assert {(image["width"], image["height"]) for image in read["images"]} == {(4, 3)}


def test_coco_results_have_the_same_ids_whatever_failed(tmp_path: Path) -> None:
    rows = [caption("a.jpg", "one"), failure("b.jpg"), caption("c.jpg", "three")]
    run(tmp_path, rows, "coco", out=tmp_path / "coco.json", results_only=True)
    assert json.loads((tmp_path / "coco.json").read_text()) == [
        {"image_id": 1, "caption": "one"},
        {"image_id": 3, "caption": "three"},
    ]


def test_coco_answers_are_results_of_every_question(tmp_path: Path) -> None:
    rows = [answer("a.jpg", "what?", HOSTILE[1]), answer("a.jpg", "where?", "here"), failure("b.jpg", question="what?")]
    run(tmp_path, rows, "coco", out=tmp_path / "coco.json")
    assert json.loads((tmp_path / "coco.json").read_text()) == [
        {"question_id": 1, "answer": HOSTILE[1]},
        {"question_id": 2, "answer": "here"},
    ]


def test_an_image_has_one_id(tmp_path: Path) -> None:
    rows = [caption("a.jpg", "one"), caption("b.jpg"), caption("a.jpg", "two")]
    assert run(tmp_path, rows, "coco", out=tmp_path / "coco.json").left_out == {"collision": 2}


SEVERAL = [
    caption("a.jpg", "one", texts=("one", "two", "two")),
    failure("b.jpg", texts=()),
    caption("c.jpg", "three", texts=("three", "four")),
]


def test_coco_has_an_annotation_for_each_caption_of_an_image(tmp_path: Path) -> None:
    run(tmp_path, SEVERAL, "coco", out=tmp_path / "all.json", suffix={"": "."})
    read = json.loads((tmp_path / "all.json").read_text())
    assert [image["id"] for image in read["images"]] == [1, 3]
    assert [(each["id"], each["image_id"], each["caption"]) for each in read["annotations"]] == [
        *((1, 1, "one."), (2, 1, "two."), (3, 1, "two."), (4, 3, "three."), (5, 3, "four."))
    ]
    run(tmp_path, SEVERAL, "coco", out=tmp_path / "first.json", which="first")
    first = json.loads((tmp_path / "first.json").read_text())["annotations"]
    assert [(each["image_id"], each["caption"]) for each in first] == [(1, "one"), (3, "three")]
    run(tmp_path, SEVERAL, "coco", out=tmp_path / "results.json", results_only=True)
    assert json.loads((tmp_path / "results.json").read_text()) == [
        {"image_id": 1, "caption": "one"},
        {"image_id": 3, "caption": "three"},
    ]


def test_label_studio_has_a_prediction_for_each_caption_of_an_image(tmp_path: Path) -> None:
    run(tmp_path, SEVERAL, "labelstudio", out=tmp_path / "tasks.json")
    texts = [
        [prediction["result"][0]["value"]["text"] for prediction in task["predictions"]]
        for task in json.loads((tmp_path / "tasks.json").read_text())
    ]
    assert texts == [[["one"], ["two"], ["two"]], [["three"], ["four"]]]


def test_label_studio_gets_urls_with_a_prefix(tmp_path: Path) -> None:
    rows = [caption("a b/100%#?.jpg"), caption("\udce9.jpg"), caption("кот.jpg")]
    prefix = "/data/local-files/?d=photos/"
    run(tmp_path, rows, "labelstudio", out=tmp_path / "tasks.json", url_prefix=prefix)
    urls = [task["data"]["image"] for task in json.loads((tmp_path / "tasks.json").read_text())]
    assert urls == [f"{prefix}{name}.jpg" for name in ("a%20b/100%25%23%3F", "%E9", "%D0%BA%D0%BE%D1%82")]


@pytest.mark.parametrize("to", ["coco", "labelstudio"])
def test_without_a_row_there_is_an_empty_list(tmp_path: Path, to: str) -> None:
    run(tmp_path, [failure("a.jpg")], to, out=tmp_path / "empty.json")
    assert json.loads((tmp_path / "empty.json").read_text()) == []


def test_label_studio_gets_each_caption_as_a_prediction(tmp_path: Path) -> None:
    run(tmp_path, map(caption, NAMES, HOSTILE), "labelstudio", out=tmp_path / "tasks.json", prefix={"sub": "in sub: "})
    tasks = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"] for task in tasks] == [{"image": name} for name in NAMES]
    for task, text in zip(tasks, HOSTILE, strict=True):
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "tiny"
        assert prediction["result"] == [
            {"from_name": "caption", "to_name": "image", "type": "textarea", "value": {"text": [f"in sub: {text}"]}}
        ]


def test_label_studio_gets_questions_with_their_answers(tmp_path: Path) -> None:
    rows = [answer("a.jpg", "what?", "a cat"), answer("a.jpg", "where?", "here")]
    run(tmp_path, rows, "labelstudio", out=tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["data"] for task in tasks] == [{"image": "a.jpg", "question": row.question} for row in rows]


@pytest.mark.parametrize("to", ["coco", "labelstudio", "csv", "parquet", "jsonl"])
def test_a_crash_leaves_no_half_file_and_what_was_there(tmp_path: Path, to: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/there").write_text("before")
    rows = [*map(caption, NAMES, HOSTILE)]

    for name in ("new", "there"):
        with pytest.raises(Killed):
            run(tmp_path, rows, to, out=tmp_path / "out" / name, existing="overwrite", files=CrashAtSync())
    assert names_in(tmp_path / "out") == ["there"]
    assert (tmp_path / "out/there").read_text() == "before"
