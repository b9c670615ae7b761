import base64
import dataclasses
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip2cap.records import ImageRef
from blip2cap.rows import row_key
from tests.rows import text_row

COLUMNS = {
    "file_name": str,
    "file_name_b64": str,
    "text": str,
    "status": str,
    "error": str,
    "finish_reason": str,
    "num_tokens": int,
    "width": int,
    "height": int,
}


def ref(name: str) -> ImageRef:
    return ImageRef(path=f"/imgs/{name}", name=name)


def test_a_plain_name_is_itself():
    assert (ref("pets/cat.jpg").file_name, ref("pets/cat.jpg").file_name_b64) == ("pets/cat.jpg", "")


def test_a_name_in_any_script_is_itself():
    assert (ref("日本/кот 🐈.jpg").file_name, ref("日本/кот 🐈.jpg").file_name_b64) == ("日本/кот 🐈.jpg", "")


def test_undecodable_bytes_become_escapes_and_the_real_bytes_are_kept():
    raw = b"caf\xe9/\xff.jpg"
    bad = ref(os.fsdecode(raw))
    assert bad.file_name == "caf\\xe9/\\xff.jpg"
    assert base64.b64decode(bad.file_name_b64) == raw


def test_a_name_that_spells_out_an_escape_has_another_key():
    bad, spelled = ref(os.fsdecode(b"\xff.jpg")), ref("\\xff.jpg")
    assert bad.file_name == spelled.file_name
    keys = {row_key(one.file_name, one.file_name_b64, None) for one in (bad, spelled)}
    assert len(keys) == 2


def test_a_name_that_spells_out_base64_has_another_key():
    bad = ref(os.fsdecode(b"\xff.jpg"))
    assert row_key(bad.file_name, bad.file_name_b64, None) != row_key(bad.file_name_b64, "", None)


def test_every_question_has_a_key_of_its_own():
    keys = {row_key("a.jpg", "", question) for question in (None, "what?", "where?")}
    assert len(keys) == 3


def test_a_row_has_the_key_that_its_columns_give():
    row = text_row(file_name="a.jpg", file_name_b64="", question="what?")
    columns = row.as_dict()
    assert row.key == row_key(columns["file_name"], columns["file_name_b64"], columns["question"])


def test_good_and_failed_rows_have_the_same_columns_and_types():
    good = text_row(
        file_name="a.jpg", file_name_b64="", text="a cat", finish_reason="stop", num_tokens=2, width=4, height=3
    )
    failed = text_row(file_name="b.jpg", file_name_b64="", status="failed", error="truncated")
    for row in (good, failed):
        assert list(row.as_dict()) == list(COLUMNS)
        assert {name: type(value) for name, value in row.as_dict().items()} == COLUMNS


def test_an_answer_has_its_question_and_no_text():
    columns = text_row(file_name="a.jpg", file_name_b64="", question="what?", text="a cat").as_dict()
    assert list(columns)[:4] == ["file_name", "file_name_b64", "question", "answer"]
    assert columns["answer"] == "a cat"
    assert "text" not in columns


def test_several_captions_are_a_list_even_where_the_image_failed():
    good = text_row(file_name="a.jpg", file_name_b64="", text="a cat", texts=("a cat", "a dog"))
    failed = text_row(file_name="b.jpg", file_name_b64="", texts=(), status="failed", error="corrupt")
    assert good.as_dict()["texts"] == ["a cat", "a dog"]
    assert failed.as_dict()["texts"] == []
    assert list(good.as_dict()) == list(failed.as_dict())


def test_a_flag_is_a_column_where_a_run_has_one():
    good, fine = (text_row(file_name="a.jpg", file_name_b64="", flag=flag) for flag in ("repetition", ""))
    assert (good.as_dict()["flag"], fine.as_dict()["flag"]) == ("repetition", "")
    assert [name for name in good.as_dict() if name != "flag"] == list(COLUMNS)
    assert "flag" not in text_row(file_name="a.jpg", file_name_b64="").as_dict()


def test_no_column_is_null_by_default():
    row = text_row(file_name="a.jpg", file_name_b64="")
    assert None not in row.as_dict().values()


def test_a_row_cannot_be_changed():
    row = text_row(file_name="a.jpg", file_name_b64="")
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.columns = {}  # type: ignore[misc]


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None, max_examples=200)
def test_any_text_makes_one_line_and_comes_back(text):
    line = text_row(file_name=f"{text.replace(chr(0), '')}.jpg", file_name_b64="", question=text, text=text).as_json()
    assert line.endswith(b"\n")
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line)["answer"] == json.loads(line)["question"] == text


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u202e", "\u2066", "\u200f"])
def test_what_ends_lines_or_steers_terminals_is_escaped(character):
    line = text_row(file_name="a.jpg", file_name_b64="", text=f"a\\{character}b").as_json()
    assert character not in line.decode()
    assert json.loads(line)["text"] == f"a\\{character}b"


def test_other_scripts_stay_readable():
    assert "кот 🐈" in text_row(file_name="a.jpg", file_name_b64="", text="кот 🐈").as_json().decode()
