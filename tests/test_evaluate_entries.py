"""Reading of references and outputs: each format, and what is wrong with one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip2cap.errors import InputError, OutputRefusedError
from blip2cap.evaluate.entries import Entry, read_output, read_references
from blip2cap.tasks.match import match_schema
from tests.commands import invoke
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


DOG = Entry(image="sub/b", texts=("a dog", "it runs"))


def kohya(here: Path) -> str:
    return save("meta_cap.json", {"a": {"caption": "a cat"}, "sub/b": {"caption": "a dog\n\nit runs", "tags": "dog"}})


def text_files(here: Path) -> str:
    (here / "texts" / "sub").mkdir(parents=True)
    (here / "texts" / "a.txt").write_text("a cat\n")
    (here / "texts" / "empty.txt").touch()
    (here / "texts" / "sub" / "b.caption").write_text("a dog\n\n it runs \n")
    return "texts"


def csv_file(here: Path) -> str:
    (here / "ref.csv").write_text("image,caption,notes\na,a cat,\nsub/b,a dog,x\nsub/b,it runs,\n")
    return "ref.csv"


def parquet_file(here: Path) -> str:
    rows = [{"image": "a", "caption": ["a cat"]}, {"image": "sub/b", "caption": ["a dog", "it runs"]}]
    pq.write_table(pa.Table.from_pylist(rows), here / "ref.parquet")
    return "ref.parquet"


def imagefolder(here: Path) -> str:
    (here / "imgs").mkdir()
    Path(csv_file(here)).rename(here / "imgs" / "metadata.csv")
    return "imgs"


@pytest.mark.parametrize("make", [kohya, text_files, csv_file, parquet_file, imagefolder])
def test_references_are_read_in_the_forms_of_other_tools(here: Path, make: Callable[[Path], str]) -> None:
    assert read_references([make(here)]).entries == (Entry(image="a", texts=("a cat",)), DOG)


def test_an_exported_csv_has_all_captions_and_no_formulas(here: Path) -> None:
    first = text_row(file_name="a.jpg", file_name_b64="", text="=1", texts=("=1", "second"))
    write(here / "rows.jsonl", first, made_with={"command": "caption", "num_captions": 2})
    assert invoke("export", "rows.jsonl", "--to", "csv", "-o", "ref.csv").exit_code == 0
    expected = (Entry(image="a.jpg", texts=("=1", "second")),)
    assert read_references(["ref.csv"]).entries == expected
    assert read_references(["rows.jsonl"]).entries == expected
    write(here / "single.jsonl", row(1, "=1"))
    assert invoke("export", "single.jsonl", "--to", "csv", "-o", "single.csv").exit_code == 0
    assert "'=1" in (here / "single.csv").read_text()
    assert read_references(["single.csv"]).entries == (Entry(image="1.jpg", texts=("=1",)),)


def test_answers_of_a_csv_are_texts_each(here: Path) -> None:
    (here / "ref.csv").write_text("image,question,answer,caption\na.jpg,is it?,yes,\na.jpg,is it?,no,\n")
    assert read_references(["ref.csv"]).entries == (Entry(image="a.jpg", question="is it?", texts=("yes", "no")),)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_an_output_of_another_tool_is_not_called_damaged(here: Path, suffix: str) -> None:
    rows = [{"image": "a.jpg", "caption": "a cat"}]
    path = here / f"other{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps(rows[0]))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    message = (
        f"other{suffix}: not an output of blip2cap: its columns are image, caption, expected file_name, file_name_b64, "
        "status and text or answer"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        read_output(path.name)
    assert read_references([path.name]).entries == (Entry(image="a.jpg", texts=("a cat",)),)


def test_a_damaged_row_of_an_output_is_still_a_damaged_row(here: Path) -> None:
    write(here / "rows.jsonl", row(1, "a cat"), row(2, "a dog"))
    lines = (here / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (here / "rows.jsonl").write_bytes(b"{}\n" + lines[1])
    with pytest.raises(OutputRefusedError, match=r"rows\.jsonl:1: not a row of blip2cap"):
        read_output("rows.jsonl")


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
        ("{", r"ref\.json:1: not valid JSON"),
        (b"[\n\xff", r"ref\.json:2: not valid UTF-8"),
        ({"settings": 1}, "an object with settings"),
        ([], "has no caption and no answer"),
        ([7], r"ref\.json\[0\]: 7 is not an object"),
        ([{"image": "a.jpg"}], r"ref\.json\[0\]: no caption and no answer, but image\. Expected one of texts"),
        ([{"caption": "a cat"}], r"ref\.json\[0\]: names no image and no question, only caption"),
        ([{"image": "a.jpg", "caption": [7]}], r"its texts are \[7\]"),
        ([{"image": "a.jpg", "caption": []}], r"its texts are \[\]"),
        (
            [{"image": "a.jpg", "caption": "a cat"}, {"image": "a.jpg", "question": "what?", "answer": "cat"}],
            "has captions and answers",
        ),
        ({"images": [{"file_name": "a.jpg"}], "annotations": []}, r"images\[0\]: an image without id"),
        (
            {"questions": [{"question": "what?"}], **VQA},
            r"questions\[0\]: a question without question and question_id, but question\.",
        ),
        ({**VQA, "questions": [{"question": "what?", "question_id": 1}]}, "no question has the id 70"),
        ("5", "neither a list nor an object"),
        ({"images": [], "annotations": None}, "its annotations are no list"),
        ({**COCO, "images": ["a.jpg"]}, r"images\[0\]: an image without id"),
        ({**VQA, "questions": {"70": "what?"}}, "its questions are no list"),
        ([{"image": "a.jpg", "question": 5, "answer": "yes"}], "its question is 5"),
        ([{"image": "a\ud800.jpg", "caption": "a cat"}], "is no name of an image"),
        ({f"{number}.jpg": 1 for number in range(1000)}, r"18\.jpg, 19\.jpg, \.\.\.\. Expected"),
    ],
)
def test_what_is_no_reference_is_named(here: Path, content: Any, message: str) -> None:
    data = content if isinstance(content, (str, bytes)) else json.dumps(content)
    (here / "ref.json").write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(InputError, match=message):
        read_references(["ref.json"])


def test_a_row_of_a_table_that_is_no_reference_is_named_by_its_line(here: Path) -> None:
    (here / "ref.csv").write_text('image,caption\n"a\nb.jpg",a cat\nc.jpg,\n')
    with pytest.raises(InputError, match=r"^ref\.csv:4: no caption and no answer, but image\. Expected one of"):
        read_references(["ref.csv"])
    (here / "sub").mkdir()
    (here / "sub" / "ref.jsonl").write_text('{"image": "a.jpg", "caption": "a cat"}\n{"image')
    with pytest.raises(InputError, match=r"^sub/ref\.jsonl:2: no JSON: Unterminated string"):
        read_references(["sub/ref.jsonl"])


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
