"""Reading of references and outputs: each format, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip2cap.errors import InputError
from blip2cap.evaluate.entries import Entry, read_output, read_references
from blip2cap.tasks.match import match_schema
from tests.rows import failed, row, text_row, write


def save(name: str, content: Any) -> str:
    Path(name).write_text(json.dumps(content))
    return name


COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "a cat"},
        {"id": 2, "image_id": 8, "caption": "a dog"},
        {"id": 3, "image_id": 7, "caption": "one cat"},
    ],
}
VQA = {
    "annotations": [
        {
            "question_id": 70,
            "image_id": 7,
            "question_type": "is there",
            "answer_type": "yes/no",
            "answers": [{"answer": "yes", "answer_id": 1}, {"answer": "no", "answer_id": 2}],
        }
    ]
}
QUESTIONS = {"questions": [{"question_id": 70, "image_id": 7, "question": "is there a cat?"}]}
CAT = Entry(image="a.jpg", image_id="7", texts=("a cat", "one cat"))


def test_captions_of_coco_are_collected_by_image(here: Path) -> None:
    dog = Entry(image="b.jpg", image_id="8", texts=("a dog",))
    assert read_references([save("ref.json", COCO)]).entries == (CAT, dog)


def test_questions_and_annotations_of_vqa_complete_each_other_in_any_order(here: Path) -> None:
    files = [save("annotations.json", VQA), save("questions.json", QUESTIONS)]
    expected = Entry(
        image_id="7",
        question="is there a cat?",
        question_id="70",
        texts=("yes", "no"),
        question_type="is there",
        answer_type="yes/no",
    )
    assert read_references(files).entries == read_references(files[::-1]).entries == (expected,)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (
            [
                {"image": "a.jpg", "image_id": 7, "caption": "a cat"},
                {"image": "a.jpg", "image_id": 7, "caption": ["one cat"]},
            ],
            CAT,
        ),
        (
            [{"instance_id": 3, "image": "a.jpg", "text_input": "what?", "answer": ["cat", "cats"]}],
            Entry(image="a.jpg", question="what?", question_id="3", texts=("cat", "cats")),
        ),
        (
            [{"image": "a.jpg", "question": "what?", "question_id": "q1", "answer": "cat", "answer_type": "other"}],
            Entry(image="a.jpg", question="what?", question_id="q1", texts=("cat",), answer_type="other"),
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_annotations_of_lavis_are_read_as_list_and_as_lines(
    here: Path, entries: list[dict[str, Any]], expected: Entry, suffix: str
) -> None:
    content = json.dumps(entries) if suffix == ".json" else "\n".join(map(json.dumps, entries))
    (here / f"ref{suffix}").write_text(content)
    assert read_references([f"ref{suffix}"]).entries == (expected,)


def test_rows_are_references_and_outputs(here: Path) -> None:
    write(here / "rows.jsonl", row(1, "a cat"), failed(2))
    assert read_references(["rows.jsonl"]).entries == (Entry(image="1.jpg", texts=("a cat",)),)
    found = read_output("rows.jsonl")
    assert found.entries == (Entry(image="1.jpg", texts=("a cat",)), Entry(image="2.jpg", texts=()))
    assert not found.are_answers


def test_rows_in_a_table_are_references(here: Path) -> None:
    schema = text_row(file_name="x", file_name_b64="").schema
    pq.write_table(pa.Table.from_batches([schema.batch([row(1, "a cat"), failed(2)])]), here / "rows.parquet")
    assert read_references(["rows.parquet"]).entries == (Entry(image="1.jpg", texts=("a cat",)),)


def test_an_output_knows_the_folder_of_its_images_and_its_first_caption(here: Path) -> None:
    first = text_row(file_name="a.jpg", file_name_b64="", text="best", texts=("best", "second"))
    settings = {"command": "caption", "num_captions": 2, "input_root": "/images"}
    write(here / "rows.jsonl", first, made_with=settings)
    found = read_output("rows.jsonl")
    assert (found.root, found.entries[0].texts) == ("/images", ("best",))


def test_results_of_coco_and_vqa_are_outputs(here: Path) -> None:
    captions = read_output(save("results.json", [{"image_id": 7, "caption": "a cat"}]))
    assert captions.entries == (Entry(image_id="7", texts=("a cat",)),)
    answers = read_output(save("answers.json", [{"question_id": 70, "answer": "yes"}]))
    assert answers.entries == (Entry(question_id="70", texts=("yes",)),)
    assert answers.are_answers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "ref.json: not JSON"),
        (b"\xff", "ref.json: not valid UTF-8"),
        ({"settings": 1}, "an object with settings"),
        ([], "has no caption and no answer"),
        ([7], "entry 1 is not an object"),
        ([{"image": "a.jpg"}], "entry 1 has no caption and no answer, but image"),
        ([{"caption": "a cat"}], "entry 1 names no image and no question, only caption"),
        ([{"image": "a.jpg", "caption": [7]}], r"entry 1 has \[7\] for texts"),
        ([{"image": "a.jpg", "caption": []}], r"entry 1 has \[\] for texts"),
        (
            [{"image": "a.jpg", "caption": "a cat"}, {"image": "a.jpg", "question": "what?", "answer": "cat"}],
            "has captions and answers",
        ),
        ({"images": [{"file_name": "a.jpg"}], "annotations": []}, "an image lacks 'id'"),
        ({"questions": [{"question": "what?"}], **VQA}, "a question lacks 'question_id'"),
        ({**VQA, "questions": [{"question": "what?", "question_id": 1}]}, "no question has the id 70"),
        ("5", "5 is no list and no object"),
        ({"images": [], "annotations": None}, "its annotations are no list of objects"),
        ({**COCO, "images": ["a.jpg"]}, "its images are no list of objects"),
        ({**VQA, "questions": {"70": "what?"}}, "its questions are no list of objects"),
        ([{"image": "a.jpg", "question": 5, "answer": "yes"}], "entry 1 has 5 for a question"),
        ([{"image": "a\ud800.jpg", "caption": "a cat"}], "for the name of an image"),
        ({f"{number}.jpg": {"caption": "a cat"} for number in range(1000)}, r"18\.jpg, 19\.jpg, \.\.\.\. Expected"),
    ],
)
def test_what_is_no_reference_is_named(here: Path, content: Any, message: str) -> None:
    data = content if isinstance(content, (str, bytes)) else json.dumps(content)
    (here / "ref.json").write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(InputError, match=message):
        read_references(["ref.json"])


def test_ids_of_a_table_with_gaps_are_whole_numbers(here: Path) -> None:
    found = read_output(save("results.json", [{"image_id": 42.0, "caption": "a cat"}]))
    assert found.entries[0].image_id == "42"


def test_scores_and_missing_files_are_no_output(here: Path) -> None:
    scores = match_schema().row(file_name="a.jpg", text="a cat", itm=0.5, itc=0.5, status="ok")
    (here / "matches.jsonl").write_bytes(scores.as_json())
    with pytest.raises(InputError, match="its rows are scores of texts"):
        read_output("matches.jsonl")
    with pytest.raises(InputError, match=r"no\.jsonl: no such file"):
        read_output("no.jsonl")
    with pytest.raises(InputError, match="not a list of results"):
        read_output(save("coco.json", COCO))
