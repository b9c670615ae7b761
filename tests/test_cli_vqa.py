from __future__ import annotations

import json
from pathlib import Path

from tests.commands import TINY, draw_scenes, invoke, names_below, read_rows

COLUMNS = {
    "file_name": str,
    "file_name_b64": str,
    "question": str,
    "answer": str,
    "status": str,
    "error": str,
    "finish_reason": str,
    "num_tokens": int,
    "width": int,
    "height": int,
}


def test_there_is_one_row_for_every_image_and_question(scenes: Path, here: Path) -> None:
    result = invoke("vqa", scenes, *TINY, "-q", "where is this?", "-q", "is it day or night?")
    rows = read_rows(here / "answers.jsonl")
    assert (result.exit_code, result.stdout) == (0, "")
    assert [(row["file_name"], row["question"]) for row in rows] == [
        (name, question) for name in names_below(scenes) for question in ("where is this?", "is it day or night?")
    ]


def test_rows_have_the_same_columns_and_types_in_the_same_order(scenes: Path, here: Path) -> None:
    (here / "bad.png").write_bytes(b"no image")
    result = invoke("vqa", scenes, "bad.png", *TINY, "-q", "where is this?")
    rows = read_rows(here / "answers.jsonl")
    assert result.exit_code == 3
    assert [{name: type(value) for name, value in row.items()} for row in rows] == [COLUMNS] * 6
    assert [list(row) for row in rows] == [list(COLUMNS)] * 6


def test_a_bad_image_is_named_once_and_fails_for_every_question(scenes: Path, here: Path) -> None:
    (here / "bad.png").write_bytes(b"no image")
    result = invoke("vqa", scenes, "bad.png", *TINY, "-q", "what?", "-q", "where?")
    assert result.stderr.count("bad.png: not_an_image") == 1
    assert "10 ok, 2 failed (2 not_an_image)" in result.stderr


def test_questions_come_from_a_file_too(scenes: Path, here: Path) -> None:
    (here / "questions.txt").write_bytes("\ufeffwhere is this?\r\n\n is it night? \n".encode())
    result = invoke("vqa", scenes / "000.png", *TINY, "-q", "what?", "--questions", "questions.txt")
    assert result.exit_code == 0
    assert [row["question"] for row in read_rows(here / "answers.jsonl")] == ["what?", "where is this?", "is it night?"]


def test_a_question_that_is_added_later_adds_rows_only(scenes: Path, here: Path) -> None:
    invoke("vqa", scenes, *TINY, "-q", "what?")
    before = (here / "answers.jsonl").read_bytes()
    result = invoke("vqa", scenes, *TINY, "-q", "what?", "-q", "where?", "--json")
    after = (here / "answers.jsonl").read_bytes()
    assert after.startswith(before)
    assert [row["question"] for row in read_rows(after[len(before) :])] == ["where?"] * 5
    facts = json.loads(result.stdout)
    assert (facts["images"], facts["rows_ok"], facts["rows_there_before"]) == (5, 5, 5)


def test_asking_one_by_one_gives_the_answers_of_asking_together(scenes: Path, here: Path) -> None:
    together = invoke("vqa", scenes, *TINY, "-o", "-", "-q", "where is this?", "-q", "is it night?").stdout_bytes
    for question in ("where is this?", "is it night?"):
        alone = invoke("vqa", scenes, *TINY, "-o", "-", "-q", question, "--batch-size", "2").stdout_bytes
        assert read_rows(alone) == [row for row in read_rows(together) if row["question"] == question]


def test_the_template_is_recorded_and_another_one_is_refused(scenes: Path, here: Path) -> None:
    invoke("vqa", scenes, *TINY, "-q", "what?")
    settings = json.loads((here / "answers.jsonl.run.json").read_text())["settings"]
    assert settings["template"] == "Question: {question} Answer:"
    result = invoke("vqa", scenes, *TINY, "-q", "where?", "--template", "{question}")
    assert result.exit_code == 5
    assert '--template was "Question: {question} Answer:", now "{question}"' in result.stderr


def test_an_empty_answer_is_asked_for_again_and_flagged(here: Path) -> None:
    """`tiny` answers this question with nothing about some scenes."""
    images, question = draw_scenes(here / "images", 4, size=(160, 120)), ("-q", "Answer:")
    invoke("vqa", images, *TINY, *question, "-o", "plain.jsonl")
    result = invoke("vqa", images, *TINY, *question, "--loop-guard")
    plain, rows = read_rows(here / "plain.jsonl"), read_rows(here / "answers.jsonl")
    empty = [number for number, row in enumerate(plain) if row["answer"] == ""]
    assert empty
    assert [number for number, row in enumerate(rows) if row["flag"] == "retried"] == empty
    assert all(row["answer"] for row in rows)
    assert list(rows[0]) == [*list(COLUMNS)[:7], "flag", *list(COLUMNS)[7:]]
    assert f"{len(empty)} retried, 0 flagged" in result.stderr


def test_braces_in_a_question_are_text(scenes: Path, here: Path) -> None:
    assert invoke("vqa", scenes / "000.png", *TINY, "-q", "{stem} {x}?").exit_code == 0
    assert [row["question"] for row in read_rows(here / "answers.jsonl")] == ["{stem} {x}?"]


def test_a_dry_run_counts_rows_and_checks_template_and_questions(scenes: Path, here: Path) -> None:
    result = invoke("vqa", scenes, *TINY, "-q", "what?", "-q", "where?", "--dry-run")
    assert "answers.jsonl: 5 of 5 images to do (10 rows); nothing was written" in result.stderr
    assert invoke("vqa", scenes, "-q", "what?", "--template", "{x}", "--dry-run").exit_code == 2
    assert list(here.iterdir()) == []
