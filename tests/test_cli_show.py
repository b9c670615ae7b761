from __future__ import annotations

from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from blip2cap.cli import app
from blip2cap.rows import Row
from tests.commands import finish, invoke, start, take_one_line
from tests.rows import text_row


def write(path: Path, *rows: Row) -> Path:
    path.write_bytes(b"".join(row.as_json() for row in rows))
    return path


def captions(count: int) -> list[Row]:
    return [text_row(file_name=f"{index}.jpg", file_name_b64="", text=f"caption {index}") for index in range(count)]


def test_captions_are_shown_as_a_table(here: Path) -> None:
    failed = text_row(file_name="bad.jpg", file_name_b64="", status="failed", error="truncated")
    result = invoke("show", write(here / "captions.jsonl", *captions(2), failed))
    assert (result.exit_code, result.stderr) == (0, "")
    for part in ("file_name", "text", "status", "0.jpg", "caption 1", "bad.jpg", "failed: truncated"):
        assert part in result.stdout


@pytest.mark.parametrize(("charset", "first"), [("latin-1", "caf\xe9"), ("ascii", "caf\\xe9"), ("utf-8", "caf\xe9")])
def test_what_the_terminal_cannot_show_is_escaped_in_a_table_that_fits(here: Path, charset: str, first: str) -> None:
    rows = [
        text_row(file_name=f"{number}.jpg", file_name_b64="", text=text) for number, text in enumerate(("café", "海"))
    ]
    write(here / "captions.jsonl", *rows)
    result = CliRunner(charset=charset).invoke(app, ["show", "captions.jsonl"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert first in lines[3]
    assert ("海" if charset == "utf-8" else "\\u6d77") in lines[4]
    assert len({cell_len(line) for line in lines}) == 1


def test_answers_are_shown_with_their_questions(here: Path) -> None:
    row = text_row(file_name="a.jpg", file_name_b64="", question="where?", text="on the beach")
    result = invoke("show", write(here / "answers.jsonl", row))
    for part in ("question", "answer", "where?", "on the beach"):
        assert part in result.stdout


def test_limit_rows_are_shown_and_the_others_counted(here: Path) -> None:
    path = write(here / "captions.jsonl", *captions(60))
    assert "49.jpg" in invoke("show", path).stdout
    result = invoke("show", path, "--limit", "2")
    assert "1.jpg" in result.stdout
    assert " 2.jpg" not in result.stdout
    assert "... and 58 more rows" in result.stdout
    assert invoke("show", path, "--limit", "0").exit_code == 2


def test_rows_that_fit_exactly_are_all(here: Path) -> None:
    assert "more rows" not in invoke("show", write(here / "captions.jsonl", *captions(3)), "--limit", "3").stdout


def test_a_file_without_rows_says_so(here: Path) -> None:
    write(here / "captions.jsonl")
    assert invoke("show", "captions.jsonl").stdout == "captions.jsonl has no rows yet.\n"


def test_a_torn_last_line_of_a_run_under_way_is_no_row_yet(here: Path) -> None:
    path = write(here / "captions.jsonl", *captions(3))
    path.write_bytes(path.read_bytes()[:-20])
    result = invoke("show", path)
    assert result.exit_code == 0
    assert "1.jpg" in result.stdout
    assert "2.jpg" not in result.stdout


@pytest.mark.parametrize("line", [b"no json", b"[]", b'{"text": "x"}', b"\xff", b"null"])
def test_a_file_that_is_no_output_is_refused_with_its_line(here: Path, line: bytes) -> None:
    path = write(here / "captions.jsonl", *captions(2))
    path.write_bytes(path.read_bytes() + line + b"\n")
    result = invoke("show", path)
    assert (result.exit_code, result.stdout) == (5, "")
    assert "captions.jsonl:3: not a row of blip2cap" in result.stderr


def test_a_folder_without_parts_is_refused(here: Path) -> None:
    result = invoke("show", here)
    assert result.exit_code == 2
    assert "a folder without part-*.parquet" in result.stderr


def test_a_reader_that_goes_ends_it_quietly(here: Path) -> None:
    path = write(here / "captions.jsonl", *captions(2500))  # more than a pipe and the buffer of its reader hold
    process = start("show", path, "--limit", "2500", cwd=here)
    assert take_one_line(process)
    assert (finish(process), process.returncode) == ((b"", b""), 141)
