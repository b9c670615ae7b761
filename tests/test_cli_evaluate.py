"""`blip2cap evaluate` as it is typed: captions, answers, an index, captions without references."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.commands import invoke
from tests.rows import text_row, write
from tests.test_cli_names import STEERING
from tests.test_index_sheet import MARKUP, Page
from tests.test_layers import HEAVY, imported_by

REFERENCES = {"a.png": ["a red car", "one red car"], "b.png": ["a green tree"], "sub/c.png": ["a purple boat at night"]}


def rows(here: Path, name: str, texts: dict[str, str]) -> str:
    """Write captions of the images, as a run in `images` does."""
    made = [text_row(file_name=image, file_name_b64="", text=text) for image, text in texts.items()]
    write(here / name, *made, made_with={"command": "caption", "input_root": str(here / "images")})
    return name


@pytest.fixture
def captions(images: Path, here: Path) -> str:
    """Captions of three images, and references of them in lavis.json."""
    entries = [{"image": name, "caption": texts, "image_id": at} for at, (name, texts) in enumerate(REFERENCES.items())]
    (here / "lavis.json").write_text(json.dumps(entries))
    return rows(here, "captions.jsonl", {"a.png": "a red car", "b.png": "a blue tree", "sub/c.png": "a boat at night"})


@pytest.fixture
def answers(here: Path) -> str:
    """Answers to one question about ten images, always yes, and references that say so of six."""
    made = [text_row(file_name=f"{at}.png", file_name_b64="", question="is it?", text="yes") for at in range(10)]
    write(here / "answers.jsonl", *made, made_with={"command": "vqa"})
    entries = [
        {"instance_id": at, "image": f"{at}.png", "text_input": "is it?", "answer": ["no" if at % 5 > 2 else "yes"]}
        for at in range(10)
    ]
    (here / "vqa.json").write_text(json.dumps(entries))
    return "answers.jsonl"


def cells(stdout: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in stdout.splitlines() if "│" in line]


def test_captions_are_scored_against_references_with_intervals(captions: str) -> None:
    result = invoke("evaluate", captions, "--references", "lavis.json", "--worst", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("captions.jsonl: 3 captions, 1 to 2 references each, found by file name\n")
    table = cells(result.stdout)
    assert [row[0] for row in table[:6]] == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"]
    low, high = map(float, table[4][2].split(" to "))
    assert low < float(table[4][1]) < high
    assert [row[1:] for row in table[6:]] == [
        ["b.png", "a blue tree", "a green tree"],
        ["sub/c.png", "a boat at night", "a purple boat at night"],
    ]
    assert "the lowest CIDEr-D of 3 captions" in result.stdout


def test_scores_are_json_as_shares(captions: str) -> None:
    result = invoke("evaluate", captions, "--references", "lavis.json", "--json", "--worst", "1")
    facts = json.loads(result.stdout)
    assert (facts["output"], facts["captions"], facts["compared_by"]) == ("captions.jsonl", 3, "file name")
    assert [*facts["metrics"]["CIDEr-D"]] == ["value", "low", "high"]
    assert 0 < facts["metrics"]["BLEU-1"]["low"] <= facts["metrics"]["BLEU-1"]["value"] <= 1
    (worst,) = facts["worst"]
    assert (worst["file_name"], worst["references"]) == ("b.png", ["a green tree"])


def test_a_folder_of_images_is_refused_where_no_image_is_read(captions: str) -> None:
    refused = invoke("evaluate", captions, "--references", "lavis.json", "--images", "images")
    assert (refused.exit_code, "--images images: no image is read here" in refused.stderr) == (2, True)


def test_options_of_the_model_and_of_images_are_taken_where_they_are_used(
    captions: str, index: str, model: tuple[str, str]
) -> None:
    assert invoke("evaluate", captions, "--itm", *model, "--device", "cpu", "--threads", "2").exit_code == 0
    assert invoke("evaluate", index, "--references", "words.json", "--dtype", "float32").exit_code == 0
    html = invoke("evaluate", captions, "--references", "lavis.json", "--html", "x.html", "--threads", "2")
    assert html.exit_code == 0, html.stderr
    refused = invoke("evaluate", index, "--references", "words.json", "--threads", "2")
    assert (refused.exit_code, "--threads 2 has no effect" in refused.stderr) == (2, True)


def test_two_runs_are_compared_on_the_same_images(captions: str, here: Path) -> None:
    better = {"a.png": "a red car", "b.png": "a green tree", "sub/c.png": "a purple boat at night"}
    other = rows(here, "other.jsonl", better)
    result = invoke("evaluate", captions, "--references", "lavis.json", "--compare", other)
    assert result.exit_code == 0, result.stderr
    assert "compared with other.jsonl" in result.stdout
    rouge = next(row for row in cells(result.stdout) if row[0] == "ROUGE-L")
    assert rouge[2] == "100.0"
    assert float(rouge[3]) == pytest.approx(float(rouge[1]) - 100, abs=0.11)
    facts = json.loads(invoke("evaluate", other, "--references", "lavis.json", "--compare", captions, "--json").stdout)
    found = facts["compare"]["metrics"]["ROUGE-L"]
    assert found["difference"] == pytest.approx(found["value"] - found["other"])
    assert found["low"] >= 0


def test_what_only_one_side_has_is_an_error_or_left_out_in_both_runs(captions: str, here: Path) -> None:
    other = rows(here, "other.jsonl", {"a.png": "a red car", "b.png": "a green tree"})
    command = ("evaluate", captions, "--references", "lavis.json", "--compare", other)
    refused = invoke(*command)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert '1 of 3 references have no caption ("sub/c.png")' in refused.stderr
    facts = json.loads(invoke(*command, "--only-matched", "--json").stdout)
    assert facts["captions"] == 2
    assert facts["notes"] == ['left out: other.jsonl: 1 of 3 references have no caption ("sub/c.png")']
    assert facts["compare"]["metrics"]["ROUGE-L"]["other"] == 1


def test_a_model_that_always_says_yes_shows_at_once(answers: str) -> None:
    result = invoke("evaluate", answers, "--references", "vqa.json")
    assert result.exit_code == 0, result.stderr
    assert ["exact match", "60.0"] in [row[:2] for row in cells(result.stdout)]
    assert ['"no"', "4", "0", "0.0% of 4"] in cells(result.stdout)
    assert ["balanced accuracy", "50.0", "50.0 to 50.0"] in cells(result.stdout)
    assert 'always "yes" would be right for 60.0%' in result.stdout
    assert 'nearly always "yes": the answer to 10 of 10 questions, the reference of 6' in " ".join(
        result.stdout.split()
    )


def test_no_text_controls_the_terminal(here: Path) -> None:
    hostile = "is it \x1b[31mred\u202e?"
    made = [text_row(file_name=f"{at}.png", file_name_b64="", question=hostile, text=hostile) for at in range(4)]
    write(here / "answers.jsonl", *made, made_with={"command": "vqa"})
    result = invoke("evaluate", "answers.jsonl", "--references", "answers.jsonl", "--worst", "1")
    assert result.exit_code == 0, result.stderr
    assert not STEERING.search(result.stdout)
    assert "\\x1b[31mred\\u202e" in result.stdout


def test_only_answers_that_are_wrong_are_among_the_worst(answers: str) -> None:
    result = invoke("evaluate", answers, "--references", "vqa.json", "--worst", "9")
    shown = [row for row in cells(result.stdout) if len(row) == 5]
    assert shown == [["0.0", f"{at}.png", "is it?", "yes", "no"] for at in (3, 4, 8, 9)]
    assert "all 10 answers are right" in invoke("evaluate", answers, "--references", answers, "--worst", "9").stdout


def test_answers_are_results_and_questions_come_from_a_second_file(here: Path) -> None:
    people = [{"answer": "yes", "answer_id": at} for at in range(10)]
    annotations = [
        {"question_id": at, "image_id": at, "question_type": "is", "answer_type": kind, "answers": people}
        for at, kind in enumerate(("yes/no", "yes/no", "other"))
    ]
    (here / "annotations.json").write_text(json.dumps({"annotations": annotations}))
    questions = [{"question_id": at, "image_id": at, "question": "is it?"} for at in range(3)]
    (here / "questions.json").write_text(json.dumps({"questions": questions}))
    (here / "results.json").write_text(
        json.dumps([{"question_id": at, "answer": "yes" if at else "no"} for at in range(3)])
    )
    command = ("evaluate", "results.json", "--references", "annotations.json", "--references", "questions.json")
    facts = json.loads(invoke(*command, "--json").stdout)
    assert facts["metrics"]["VQA accuracy"]["value"] == pytest.approx(2 / 3)
    assert [(each["by"], each["name"], each["items"]) for each in facts["groups"]] == [
        ("answer type", "yes/no", 2),
        ("answer type", "other", 1),
    ]
    assert "other" in [row[0] for row in cells(invoke(*command).stdout)]


def test_captions_are_scored_without_references_by_a_matching_model(
    captions: str, here: Path, model: tuple[str, str]
) -> None:
    result = invoke("evaluate", captions, "--itm", *model, "--worst", "1")
    assert result.exit_code == 0, result.stderr
    table = {row[0]: row[1] for row in cells(result.stdout)[:3]}
    assert table == {"ITM": "33.3", "ITM of 0.5 or more": "33.3", "ITC": "-33.3"}
    assert cells(result.stdout)[-1][1:3] == ["b.png", "a blue tree"]
    (here / "images" / "b.png").unlink()
    result = invoke("evaluate", captions, "--itm", *model, "--json")
    assert (result.exit_code, "b.png: vanished" in result.stderr) == (3, True)
    assert json.loads(result.stdout)["captions"] == 2


def test_rows_without_a_caption_are_left_out_and_counted(captions: str, here: Path, model: tuple[str, str]) -> None:
    lines = (here / captions).read_text().splitlines(keepends=True)
    failed = json.dumps(json.loads(lines[1]) | {"status": "failed", "error": "corrupt", "text": ""}) + "\n"
    (here / captions).write_text(lines[0] + failed + lines[2])
    facts = json.loads(invoke("evaluate", captions, "--itm", *model, "--json").stdout)
    assert facts["captions"] == 2
    assert facts["notes"] == ["left out: captions.jsonl: 1 of 3 rows, which have failed"]
    (here / captions).write_text(failed)
    refused = invoke("evaluate", captions, "--itm", *model)
    assert (refused.exit_code, "all of its rows have failed, there is no caption" in refused.stderr) == (2, True)


def test_rows_from_standard_input_have_a_sheet(captions: str, here: Path) -> None:
    given = (here / captions).read_bytes()
    made = invoke("evaluate", "-", "--references", "lavis.json", "--images", "images", "--html", "x.html", stdin=given)
    assert made.exit_code == 0, made.stderr
    assert "b.png" in (here / "x.html").read_text()


def test_images_are_found_where_images_says_and_their_absence_is_an_error(
    captions: str, here: Path, model: tuple[str, str]
) -> None:
    (here / "images").rename(here / "elsewhere")
    refused = invoke("evaluate", captions, "--itm", *model)
    assert (refused.exit_code, "Say where they are: --images" in refused.stderr) == (2, True)
    assert invoke("evaluate", captions, "--itm", *model, "--images", "elsewhere").exit_code == 0


@pytest.fixture
def index(captions: str, here: Path, model: tuple[str, str]) -> str:
    """An index of the images."""
    assert invoke("index", "images", *model, "-o", "my.index").exit_code == 0
    entries = [
        {"image": name, "caption": [text]}
        for name, text in (("a.png", "red"), ("b.png", "green"), ("sub/c.png", "red and blue"))
    ]
    (here / "words.json").write_text(json.dumps(entries))
    return "my.index"


def test_an_index_has_recall_both_ways_and_ranked_again(index: str) -> None:
    result = invoke("evaluate", index, "--references", "words.json", "--rerank", "3", "--worst", "1")
    assert result.exit_code == 0, result.stderr
    names = [row[0] for row in cells(result.stdout)[:12]]
    assert names == [
        f"{way} R@{cut}{again}"
        for again in ("", ", re-ranked")
        for way in ("text to image", "image to text")
        for cut in (1, 5, 10)
    ]
    facts = json.loads(invoke("evaluate", index, "--references", "words.json", "--rerank", "3", "--json").stdout)
    assert facts["images"] == 3
    assert facts["metrics"]["image to text R@5"]["value"] == 1
    assert facts["metrics"]["text to image R@1, re-ranked"]["value"] == pytest.approx(1)


def test_an_image_that_is_gone_is_not_found_again_and_the_exit_code_says_so(index: str, here: Path) -> None:
    (here / "images" / "a.png").unlink()
    result = invoke("evaluate", index, "--references", "words.json", "--rerank", "3", "--json")
    assert (result.exit_code, "a.png: vanished" in result.stderr) == (3, True)
    found = json.loads(result.stdout)["metrics"]
    assert found["text to image R@1, re-ranked"]["value"] < found["text to image R@5"]["value"]


def test_the_worst_are_a_page_with_images_and_references(captions: str) -> None:
    result = invoke("evaluate", captions, "--references", "lavis.json", "--worst", "2", "--html", "sheet.html")
    assert (result.exit_code, result.stderr) == (0, "sheet.html: 2 images\n")
    page = Page(Path("sheet.html").read_text(encoding="utf-8"))
    assert [each["alt"] for each in page.all("img")] == ["b.png", "sub/c.png"]
    assert "a blue tree" in page.texts
    assert "reference: a green tree" in page.texts
    again = invoke("evaluate", captions, "--references", "lavis.json", "--html", "sheet.html")
    assert (again.exit_code, "sheet.html: exists" in again.stderr) == (2, True)
    again = invoke("evaluate", captions, "--references", "lavis.json", "--html", "sheet.html", "--overwrite")
    assert (again.exit_code, again.stderr) == (0, "sheet.html: 3 images\n")


def test_markup_in_texts_names_and_references_is_text(here: Path) -> None:
    write(
        here / "rows.jsonl",
        *(
            text_row(file_name=f"{at}{text.replace(chr(0), '')}".replace("/", "_"), file_name_b64="", text=text)
            for at, text in enumerate(MARKUP)
        ),
    )
    names = [json.loads(line)["file_name"] for line in (here / "rows.jsonl").read_text().splitlines()]
    entries = [{"image": name, "caption": text} for name, text in zip(names, MARKUP, strict=True)]
    (here / "ref.json").write_text(json.dumps(entries))
    result = invoke("evaluate", "rows.jsonl", "--references", "ref.json", "--html", "sheet.html")
    assert result.exit_code == 3  # no image exists
    page = Page(Path("sheet.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.elements} <= {
        *("html", "head", "meta", "title", "style", "body", "header", "h1", "p", "section", "h2", "bdi", "small", "ol"),
        *("li", "div", "b", "footer"),
    }
    assert {f"reference: {text}" for text in MARKUP} <= {*page.texts}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare with: give --references FILE, or --itm"),
        (["--references", "lavis.json", "--itm"], "--itm and --references exclude each other"),
        (["--references", "lavis.json", "--rerank", "10"], "--rerank 10: is for an index, captions.jsonl is none"),
        (["--references", "lavis.json", "-m", "tiny-itm"], "--model tiny-itm: no model is needed here"),
        (["--references", "lavis.json", "--dtype", "float32"], "--dtype float32 has no effect without --itm: no model"),
        (["--references", "lavis.json", "--device", "cpu"], "--device cpu has no effect without --itm: no model"),
        (["--references", "lavis.json", "--revision", "main"], "--revision main has no effect without --itm: no model"),
        (["--references", "lavis.json", "--html", "x.html", "--device", "cpu"], "--device cpu has no effect"),
        (["--references", "lavis.json", "--isolate"], "--isolate has no effect without --itm, --rerank or --html: no"),
        (["--references", "lavis.json", "--threads", "2"], "--threads 2 has no effect without --itm, --rerank or"),
        (["--references", "lavis.json", "--worst", "0"], "--worst 0: must be 1 or more"),
        (["--references", "lavis.json", "--html", "x.txt"], "--html x.txt: must end in .html"),
        (["--references", "lavis.json", "--metrics", "BLUE"], "--metrics BLUE: must be of BLEU-1"),
        (["--itm", "--metrics", "METEOR"], "--metrics METEOR: is for captions with references"),
        (["--references", "no.json"], "--references no.json: no such file"),
        (["--itm", "-m", "tiny"], "cannot match"),
    ],
)
def test_wrong_options_are_refused(captions: str, arguments: list[str], message: str) -> None:
    result = invoke("evaluate", captions, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_variables_are_for_all_commands_and_refuse_nothing(captions: str) -> None:
    variables = {"BLIP2CAP_DTYPE": "float32", "BLIP2CAP_DEVICE": "cpu", "BLIP2CAP_THREADS": "2"}
    assert invoke("evaluate", captions, "--references", "lavis.json", env=variables).exit_code == 0


def test_results_without_names_have_no_images(here: Path) -> None:
    (here / "results.json").write_text(json.dumps([{"image_id": 7, "caption": "a cat"}]))
    result = invoke("evaluate", "results.json", "--itm", "-m", "tiny-itm")
    assert (result.exit_code, "names no images, only ids" in result.stderr) == (2, True)


def test_scores_of_texts_need_no_torch(captions: str, here: Path) -> None:
    assert not imported_by(here, "-m", "blip2cap", "evaluate", captions, "--references", "lavis.json") & HEAVY
    assert not imported_by(here, "-m", "blip2cap", "evaluate", "--help") & {*HEAVY, "numpy", "pyarrow", "rich"}


def test_the_help_says_what_it_takes() -> None:
    stdout = invoke("evaluate", "--help").stdout
    assert all(re.search(rf"{flag}\b", stdout) for flag in ("--references", "--itm", "--compare", "--worst", "--html"))
