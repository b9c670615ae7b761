"""Annotations of other tools become examples; what is none is a problem with its place."""

import csv
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip2cap.errors import InputError, UsageError
from blip2cap.train.data.example import Share
from blip2cap.train.data.read import read_data
from blip2cap.train.options.data import DataOptions
from tests.commands import TINY, invoke
from tests.doc_blocks import ROOT, python_blocks, run_python

COCO = {
    "images": [{"id": 7, "file_name": "a.png", "width": 2}, {"id": 8, "file_name": "sub/b.png"}],
    "annotations": [
        {"id": 1, "image_id": 8, "caption": " a dog\n runs "},
        {"id": 2, "image_id": 7, "caption": "a cat"},
    ],
}
LAVIS_CAPTIONS = [
    {"image": "a.png", "caption": "a cat", "image_id": "coco_7"},
    {"image": "sub/b.png", "caption": "a dog runs"},
]
QUESTIONS = {
    "data_subtype": "train2014",
    "questions": [
        {"image_id": 7, "question": "is it day?", "question_id": 70},
        {"image_id": 8, "question": "what runs?", "question_id": 80},
    ],
}
ANNOTATIONS = {
    "annotations": [
        {"question_id": 80, "image_id": 8, "answers": [{"answer": "dog", "answer_id": n} for n in range(10)]},
        {
            "question_id": 70,
            "image_id": 7,
            "answers": [{"answer": "yes"}] * 9 + [{"answer": "no"}],
            "multiple_choice_answer": "yes",
        },
    ]
}
LAVIS_VQA = [
    {"instance_id": 5, "image": "a.png", "text_input": "is someone lying down?", "answer": ["no"]},
    {"instance_id": 6, "image": "sub/b.png", "text_input": "what runs?", "answer": ["dog", "a dog", "dog"]},
]


def save(path, content, indent=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=indent))
    return str(path)


def read(task, *data, **options):
    return read_data(DataOptions(data=tuple(map(str, data)), **options), task)


def texts(data):
    return [(example.name, example.texts) for example in data.train.examples]


def reasons(data):
    return [(problem.reason, problem.where) for problem in data.train.problems]


def test_captions_of_coco_have_the_names_of_their_images(here):
    (here / "pictures").mkdir()
    data = read("caption", save(here / "captions.json", COCO), images=("pictures",))
    assert texts(data) == [("sub/b.png", ("a dog runs",)), ("a.png", ("a cat",))]
    assert data.train.columns == (f"{here}/captions.json: image <- file_name, text <- caption",)
    assert data.train.examples[0].path == "pictures/sub/b.png"
    assert [example.where for example in data.train.examples] == [
        "captions.json annotations[0]",
        "captions.json annotations[1]",
    ]


def test_places_are_lines_where_each_entry_has_its_own(here):
    data = read("caption", save(here / "captions.json", LAVIS_CAPTIONS, indent=1))
    assert [example.where for example in data.train.examples] == ["captions.json:2", "captions.json:7"]
    assert data.train.examples[0].path == str(here / "a.png")
    assert data.train.examples[0].image_id == "coco_7"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_tables_are_read_by_the_names_of_their_columns(here, kind):
    path = here / f"train.{kind}"
    rows = [
        {"extra": "x", "filename": "a.png", "caption": "a cat"},
        {"extra": "y", "filename": "b.png", "caption": "d"},
    ]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    data = read("caption", path)
    assert texts(data) == [("a.png", ("a cat",)), ("b.png", ("d",))]
    assert data.train.columns == (f"{path}: image <- filename, text <- caption",)
    assert data.train.examples[1].where == f"train.{kind}:{3 if kind == 'csv' else 2}"


def test_the_folder_of_an_imagefolder_holds_its_images(here):
    (here / "set").mkdir()
    (here / "set" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n')
    data = read("caption", here / "set")
    assert data.train.examples[0].path == str(here / "set" / "a.png")


def test_keys_of_kohya_are_images_of_any_suffix(here):
    (here / "sub").mkdir()
    (here / "sub" / "b.webp").touch()
    (here / "sub" / "b.txt").touch()
    data = read("caption", save(here / "meta_cap.json", {"sub/b": {"caption": "a dog"}, "a.png": {"caption": "a cat"}}))
    assert [example.path for example in data.train.examples] == [f"{here}/sub/b.webp", f"{here}/a.png"]


def test_text_files_beside_images_hold_a_caption_on_each_line(here):
    (here / "sub").mkdir()
    (here / "sub" / "b.png").touch()
    (here / "sub" / "b.txt").write_text("a dog\nit runs\n")
    data = read("caption", here)
    assert texts(data) == [("sub/b", ("a dog",)), ("sub/b", ("it runs",))]
    assert data.train.examples[1].path == f"{here}/sub/b.png"
    assert data.train.examples[1].where == "sub/b.txt:2"


def test_rows_of_a_run_are_read_with_the_folder_of_the_run(here, images):
    (images / "broken.png").write_bytes(b"")
    assert invoke("caption", images, *TINY, "--out", "mine.jsonl").exit_code == 3
    data = read("caption", "mine.jsonl")
    assert [os.path.relpath(example.path, images) for example in data.train.examples] == ["a.png", "b.png", "sub/c.png"]
    assert all(os.path.exists(example.path) for example in data.train.examples)
    assert reasons(data) == [("failed row", "mine.jsonl:3")]


def test_questions_and_annotations_are_joined_with_the_share_of_each_answer(here):
    (here / "COCO_train2014_000000000008.jpg").touch()
    files = save(here / "questions.json", QUESTIONS), save(here / "annotations.json", ANNOTATIONS)
    data = read("vqa", *files)
    first, second = data.train.examples
    assert (first.question, first.texts, first.weights) == ("is it day?", ("yes", "no"), (0.9, 0.1))
    assert (second.texts, second.weights) == (("dog",), (1.0,))
    assert second.path == f"{here}/COCO_train2014_000000000008.jpg"
    assert second.image_id == "8"


def test_images_of_the_vqa_challenge_may_have_the_names_of_2017(here):
    (here / "pictures").mkdir()
    (here / "pictures" / "000000000008.jpg").touch()
    files = save(here / "questions.json", QUESTIONS), save(here / "annotations.json", ANNOTATIONS)
    data = read("vqa", *files, images=(str(here / "pictures"),))
    assert [example.name for example in data.train.examples] == ["000000000007.jpg", "000000000008.jpg"]


def test_questions_that_do_not_fit_their_annotations_are_problems(here):
    questions = {"questions": [*QUESTIONS["questions"], {"image_id": 9, "question": "why?", "question_id": 90}]}
    annotations = {"annotations": [*ANNOTATIONS["annotations"], {"question_id": 1, "image_id": 7, "answers": []}]}
    annotations["annotations"][0] = annotations["annotations"][0] | {"image_id": 7}
    data = read("vqa", save(here / "q.json", questions), save(here / "a.json", annotations))
    assert [problem.detail for problem in data.train.problems] == [
        "question 80 of image 8 has an annotation of image 7",
        "question 90 of image 9 has no annotation",
        "question_id 1 is not among the questions",
    ]
    assert {problem.reason for problem in data.train.problems} == {"mismatched ids"}
    assert len(data.train.examples) == 1


def test_questions_alone_are_an_error_that_names_what_is_missing(here):
    with pytest.raises(InputError, match="questions without annotations"):
        read("vqa", save(here / "q.json", QUESTIONS))


def test_answers_of_lavis_are_lists(here):
    data = read("vqa", save(here / "train.json", LAVIS_VQA))
    assert [example.texts for example in data.train.examples] == [("no",), ("dog", "a dog")]
    assert data.train.examples[1].weights == (2 / 3, 1 / 3)
    assert data.train.examples[1].most_common == "dog"
    assert data.train.columns == (f"{here}/train.json: image <- image, question <- text_input, answer <- answer",)


def test_a_bare_answer_is_refused_where_a_list_is_meant(here):
    bare = [LAVIS_VQA[0], LAVIS_VQA[1] | {"answer": "yes"}]
    data = read("vqa", save(here / "train.json", bare, indent=0))
    assert reasons(data) == [("answer is no list", "train.json:10")]
    assert "['yes']" in data.train.problems[0].detail
    (here / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    assert reasons(read("vqa", here / "train.jsonl")) == [("answer is no list", "train.jsonl:2")]


def test_bare_answers_in_all_rows_of_a_table_are_answers(here):
    (here / "train.jsonl").write_text('{"file_name": "a.png", "question": "is it day?", "answer": "yes"}\n')
    assert texts(read("vqa", here / "train.jsonl")) == [("a.png", ("yes",))]


def test_entries_that_are_no_examples_are_problems_with_their_lines(here):
    lines = [
        '{"image": "a.png", "caption": "a cat"}',
        '{"image": "a.png"}',
        '{"image": "a.png", "caption": "  "}',
        '{"image": "a.png", "caption": 3}',
        '{"image": "a.png", "caption": []}',
        '["a.png"]',
        "",
        '{"image": "a.p',
        '{"image": "", "caption": "x"}',
    ]
    (here / "train.jsonl").write_text("\n".join(lines))
    data = read("caption", here / "train.jsonl")
    assert len(data.train.examples) == 1
    assert sorted(reasons(data)) == [
        ("absent key", "train.jsonl:2"),
        ("empty text", "train.jsonl:3"),
        ("empty text", "train.jsonl:5"),
        ("empty text", "train.jsonl:9"),
        ("not an object", "train.jsonl:6"),
        ("not an object", "train.jsonl:8"),
        ("wrong type", "train.jsonl:4"),
    ]


def test_annotations_of_images_that_are_not_listed_are_problems(here):
    content = COCO | {"images": [*COCO["images"], {"id": 7, "file_name": "c.png"}, {"id": 9}]}
    content["annotations"] = [*COCO["annotations"], {"id": 3, "image_id": 70, "caption": "x"}, {"caption": "x"}]
    data = read("caption", save(here / "c.json", content))
    assert reasons(data) == [
        ("mismatched ids", "c.json images[2]"),
        ("absent key", "c.json images[3]"),
        ("mismatched ids", "c.json annotations[2]"),
        ("absent key", "c.json annotations[3]"),
    ]


def test_the_place_in_a_file_whose_name_has_a_space_has_the_whole_name(here):
    data = read("caption", save(here / "my captions.json", LAVIS_CAPTIONS, indent=1))
    assert [example.where for example in data.train.examples] == ["my captions.json:2", "my captions.json:7"]


def test_of_equal_keys_in_an_object_the_last_counts(here):
    annotations = json.dumps(COCO["annotations"])
    (here / "c.json").write_text(f'{{"images": [1, 2, 3], "annotations": {annotations}, "images": []}}')
    with pytest.raises(InputError, match="no column with names of images"):
        read("caption", here / "c.json")
    (here / "c.json").write_text(f'{{"images": [1, 2, 3], "annotations": {annotations}, "images": null}}')
    with pytest.raises(InputError, match="its images are no list"):
        read("caption", here / "c.json")


def test_the_place_of_a_single_entry_on_one_line_is_its_index(here):
    assert read("caption", save(here / "train.json", LAVIS_CAPTIONS[:1])).train.examples[0].where == "train.json[0]"


def test_texts_and_names_that_are_no_unicode_are_problems(here):
    rows = [
        {"image": "a.png", "caption": "a \ud800 cat"},
        {"image": "a\ud800.png", "caption": "a cat"},
        {"image": "a\0.png", "caption": "a cat"},
    ]
    data = read("caption", save(here / "a.json", rows))
    assert reasons(data) == [("wrong type", "a.json[0]"), ("wrong type", "a.json[1]"), ("empty text", "a.json[2]")]
    assert [os.path.basename(path) for path in data.train.other_paths] == ["a.png"]


@pytest.mark.parametrize("encoded", ["!!x", 5])
def test_a_row_with_a_damaged_name_is_a_problem(here, encoded):
    own = {"file_name": "a.png", "file_name_b64": encoded, "status": "ok", "text": "a cat"}
    assert reasons(read("caption", save(here / "a.jsonl", own))) == [("wrong type", "a.jsonl:1")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**ANNOTATIONS, "questions": {"70": "is it day?"}}, "its questions are no list"),
        ({**QUESTIONS, "annotations": {"70": "yes"}}, "its annotations are no list"),
        ({"annotations": COCO["annotations"]}, "annotations without images. Expected COCO's whole object"),
        ({str(number): 1 for number in range(1000)}, r"18, 19, \.\.\.\. Expected"),
    ],
)
def test_an_object_that_lacks_a_list_is_an_error_that_says_which(here, content, message):
    with pytest.raises(InputError, match=message):
        read("vqa", save(here / "a.json", content))


def test_a_column_that_is_not_found_is_an_error_that_names_the_columns_and_the_option(here):
    file = save(here / "train.json", [{"picture": "a.png", "words": "a cat"}])
    with pytest.raises(InputError, match=r"no column with names of images .* are picture, words.*image_column"):
        read("caption", file)
    with pytest.raises(InputError, match="no column with captions"):
        read("caption", file, image_column="picture")
    assert texts(read("caption", file, image_column="picture", text_column="words")) == [("a.png", ("a cat",))]
    with pytest.raises(InputError, match=r"no column text \("):
        read("caption", file, image_column="picture", text_column="text")


def test_of_two_known_columns_the_one_in_more_rows_counts(here):
    rows = [{"image": "a.png", "caption": "a cat", "text": "stray"}, {"image": "b.png", "caption": "a dog"}]
    assert texts(read("caption", save(here / "train.json", rows))) == [("a.png", ("a cat",)), ("b.png", ("a dog",))]


def test_several_captions_of_a_row_are_examples_each(here):
    file = save(here / "train.json", [{"image": "a.png", "captions": ["a cat", "the cat"]}])
    assert texts(read("caption", file)) == [("a.png", ("a cat",)), ("a.png", ("the cat",))]


def test_mixed_sets_have_their_weights_and_several_files_are_one_set(here):
    first, second = save(here / "1.json", LAVIS_CAPTIONS), save(here / "2.json", LAVIS_CAPTIONS)
    data = read("caption", first, second, mix=(f"{first}:0.5",), val=(second,))
    assert data.train.shares == (Share(num_examples=4, weight=1.0), Share(num_examples=2, weight=0.5))
    assert data.val is not None
    assert len(data.val.examples) == 2
    left = data.train.without({3, 4, 5})
    assert left.shares == (Share(num_examples=3, weight=1.0), Share(num_examples=0, weight=0.5))
    assert left.examples == data.train.examples[:3]


def test_the_first_folder_that_holds_an_image_counts(here):
    for name in ("one", "two"):
        (here / name).mkdir()
        (here / name / "b.png").touch()
    (here / "two" / "a.png").touch()
    file = save(here / "train.json", [{"image": name, "caption": "x"} for name in ("a.png", "b.png", "c.png")])
    data = read("caption", file, images=("one", "two"))
    assert [example.path for example in data.train.examples] == ["two/a.png", "one/b.png", "one/c.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image": "a.png"},\n {"caption" "x"}]', ":2: not valid JSON: Expecting ':' delimiter at column 13"),
        ('{"image": "a.png", "caption": "x"}\n{"image": "b.png"}', ":2: not valid JSON: Extra data at column 1"),
        ('[{"image": "a.png"}', ":1: not valid JSON: Expecting ',' delimiter"),
        ("", ":1: not valid JSON: Expecting value"),
        ("3", ":1: not valid JSON: neither a list nor an object"),
        ("[" * 100_000, ": cannot be parsed: maximum recursion depth"),
        (f"[{'1' * 5000}]", ": cannot be parsed: Exceeds the limit"),
        ("{}", "an object with nothing in it"),
        ('{"a": 1}', "an object with a."),
    ],
)
def test_a_damaged_file_is_an_error_with_its_line(here, content, message):
    (here / "train.json").write_text(content)
    with pytest.raises(InputError) as error:
        read("caption", here / "train.json")
    assert message in error.value.message


def test_files_of_other_kinds_and_missing_files_are_errors(here):
    (here / "train.yaml").touch()
    with pytest.raises(InputError, match=r"ending in \.yaml are not read"):
        read("caption", here / "train.yaml")
    with pytest.raises(InputError, match="no such file"):
        read("caption", here / "none.json")
    with pytest.raises(UsageError, match="no data given"):
        read("caption")


def test_images_inside_parquet_are_refused_and_the_script_of_the_page_writes_them_to_files(here):
    for shard in ("train-0", "train-1"):
        rows = [{"image": {"bytes": f"{shard} {n}".encode(), "path": "a.png"}, "text": f"cat {n}"} for n in range(2)]
        pq.write_table(pa.Table.from_pylist(rows), here / f"{shard}.parquet")
    with pytest.raises(InputError, match="its column image holds the images themselves"):
        read("caption", here / "train-0.parquet")
    ((script, _),) = python_blocks(ROOT / "docs" / "fine-tuning.md")
    run_python(script, {})
    data = read("caption", "train")
    assert texts(data) == [(f"train-{shard}-{n}.jpg", (f"cat {n}",)) for shard in (0, 1) for n in (0, 1)]
    written = [Path(each.path).read_text() for each in data.train.examples]
    assert written == [f"train-{shard} {n}" for shard in (0, 1) for n in (0, 1)]


@pytest.mark.parametrize("given", ["other.json", "other.json:", "other.json:0", ":1", "other.json:inf", "a:b"])
def test_a_mix_without_a_weight_is_refused(given):
    with pytest.raises(UsageError, match="expected FILE:WEIGHT"):
        DataOptions(mix=(given,))


def test_a_prompt_does_not_end_in_a_space():
    with pytest.raises(UsageError, match="ends in a space"):
        DataOptions(prompt="a photo of ")
    with pytest.raises(UsageError, match=r"has no \{question\}"):
        DataOptions(template="Question:")


def test_a_folder_of_images_that_does_not_exist_is_named(tmp_path):
    file = save(tmp_path / "train.json", LAVIS_CAPTIONS)
    with pytest.raises(InputError, match=r"images .*nodir: no such folder\."):
        read("caption", file, images=(str(tmp_path), str(tmp_path / "nodir")))
