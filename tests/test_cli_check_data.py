"""`blip2cap check-data` lists what is wrong by reason, and ends with 2 if a training could not start."""

import json

import pytest
from PIL import Image

from tests.commands import invoke


@pytest.fixture
def data(here):
    """Questions about three pictures: a file that is missing, a bare answer, a control character."""
    (here / "pictures").mkdir()
    for name, colour in (("a.png", "red"), ("b.png", "green"), ("c.png", "blue")):
        Image.new("RGB", (4, 4), colour).save(here / "pictures" / name)
    rows = [
        {"instance_id": 1, "image": "a.png", "text_input": "is someone lying down?", "answer": ["yes"]},
        {"instance_id": 2, "image": "b.png", "text_input": "is someone lying down?", "answer": "no"},
        {"instance_id": 3, "image": "x\x1b[31m.png", "text_input": "is someone lying down?", "answer": ["yes"]},
    ]
    (here / "train.json").write_text(json.dumps(rows, indent=1))
    return here / "train.json"


def test_errors_are_listed_by_reason_with_their_lines_and_end_with_2(data):
    result = invoke("check-data", data, "--images", "pictures", env={"COLUMNS": "160"})
    assert result.exit_code == 2
    assert f"{data}: image <- image, question <- text_input, answer <- answer" in result.stdout
    assert "error: answer is no list" in result.stdout
    assert "train.json:10" in result.stdout
    assert "answer is 'no', not ['no']" in result.stdout
    assert 'Write "answer": ["yes"]' in result.stdout
    assert "warning: unreferenced image" in result.stdout
    assert result.stdout.endswith("2 examples, 2 images: 2 errors, 2 warnings\n")
    assert "\x1b" not in result.stdout


def test_json_has_every_problem(data):
    result = invoke("check-data", data, "--images", "pictures", "--json", "--quiet")
    facts = json.loads(result.stdout)
    assert result.exit_code == 2
    assert (facts["examples"], facts["val_examples"], facts["images"]) == (2, None, 2)
    assert (facts["errors"], facts["warnings"]) == (2, 2)
    assert facts["by_reason"] == {
        "answer is no list": 1,
        "missing image": 1,
        "unreferenced image": 1,
        "answer balance": 1,
    }
    assert facts["problems"][0] == {
        "set": "train",
        "reason": "answer is no list",
        "error": True,
        "where": "train.json:10",
        "detail": "answer is 'no', not ['no']",
    }


def test_warnings_alone_end_with_0(data):
    rows = [{"image": "a.png", "caption": "red"}, {"image": "b.png", "caption": "green"}]
    data.write_text(json.dumps(rows))
    result = invoke("check-data", data, "--images", "pictures")
    assert result.exit_code == 0
    assert result.stdout.endswith("2 examples, 2 images: 0 errors, 1 warning\n")
    assert invoke("check-data", data, "--images", "pictures", "--val", data).exit_code == 0


def test_good_data_have_no_table(data):
    rows = [{"image": f"{name}.png", "caption": name} for name in "abc"]
    data.write_text(json.dumps(rows))
    result = invoke("check-data", data, "--images", "pictures", "-m", "tiny")
    assert result.stdout == (f"{data}: image <- image, text <- caption\n3 examples, 3 images: 0 errors, 0 warnings\n")


def test_texts_are_measured_with_the_tokens_of_a_model(data):
    rows = [{"image": f"{name}.png", "caption": "a red boat " * 9} for name in "abc"]
    data.write_text(json.dumps(rows))
    result = invoke("check-data", data, "--images", "pictures", "-m", "tiny", "--max-tokens", "8")
    assert "warning: truncated text" in result.stdout
    assert result.exit_code == 0


def test_a_file_without_examples_and_wrong_options_are_errors(data):
    data.write_text("[]")
    result = invoke("check-data", data, "--images", "pictures")
    assert result.exit_code == 2
    assert "no example in it" in result.stderr
    assert "must be caption or vqa" in invoke("check-data", data, "--task", "x").stderr
    assert "no such file" in invoke("check-data", "none.json").stderr
