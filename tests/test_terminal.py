from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from blip2cap.cli.progress import Lines, Silent, choose_progress
from blip2cap.cli.terminal import clean, say
from blip2cap.rows import Row  # noqa
from tests.commands import TINY, draw_scenes, invoke, on_terminal, read_rows
from tests.rows import text_row

HOSTILE = "\x1b[2J\x07\u202e\x9b31m\u200b[red]:bomb:\r\n\x7f"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Characters that could control a terminal or be invisible; newline and tab are used by blip2cap itself."""


def hostile_image(folder: Path) -> str:
    """Put a broken image with a hostile name into a folder."""
    name = f"{HOSTILE}.png"
    (folder / name).write_bytes(b"no image")
    return name


@pytest.mark.parametrize("text", ["", "a photo of a café", "海辺の犬", "😀", "[bold]", "a\\b", "e\u0301"])
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\r\t\0", "a\\nb\\r\\t\\x00"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("\u202egnp", "\\u202egnp"),
        ("\u200b\u200d\ufeff", "\\u200b\\u200d\\ufeff"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\udc80", "\\udc80"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_a_line_is_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("done")
    assert capsys.readouterr() == ("", "done\n")


def test_a_log_on_a_full_disk_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        say("one")
        say("two")


def test_hostile_file_names_reach_neither_stream_raw(here: Path) -> None:
    hostile_image(here)
    for out in ("captions.jsonl", "-"):
        result = invoke("caption", here, *TINY, "-o", out)
        assert result.exit_code == 3
        assert "\\x1b[2J\\x07\\u202e\\x9b31m\\u200b[red]:bomb:\\r\\n\\x7f.png: not_an_image" in result.stderr
        assert not STEERING.search(result.stderr)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", result.stdout)
    assert read_rows(result.stdout_bytes)[0]["file_name"] == f"{HOSTILE}.png"


def test_hostile_file_names_reach_no_message_raw(scenes: Path, here: Path) -> None:
    (here / f"{HOSTILE}.txt").touch()
    messages = [
        invoke("caption", HOSTILE),
        invoke("caption", here / f"{HOSTILE}.txt", *TINY, "-o", f"missing{HOSTILE}/x.jsonl"),
        invoke("caption", scenes, "-m", f"./{HOSTILE}"),
        invoke("caption", scenes, "--prompt", f"{{{HOSTILE}}}"),
        invoke("vqa", scenes, "-q", HOSTILE, "-q", HOSTILE),
        invoke("vqa", scenes, "--questions", HOSTILE),
        invoke("caption", scenes, "--config", HOSTILE),
        invoke("caption", scenes, f"--{HOSTILE}"),
        invoke("show", HOSTILE),
        invoke(HOSTILE),
    ]
    for result in messages:
        assert result.exit_code in (2, 4, 6)
        assert result.stderr
        assert not STEERING.search(result.output), result.output


def test_hostile_names_are_escaped_in_summaries(scenes: Path, here: Path) -> None:
    result = invoke("caption", scenes / "000.png", *TINY, "-o", f"{HOSTILE}.jsonl")
    assert "\\x1b[2J" in result.stderr
    assert not STEERING.search(result.stderr)
    result = invoke("caption", scenes / "000.png", *TINY, "-o", f"{HOSTILE}.jsonl", "--json")
    assert json.loads(result.stdout)["out"] == f"{HOSTILE}.jsonl"
    assert result.stdout.isascii()


def test_hostile_captions_are_shown_literally(here: Path) -> None:
    row = text_row(file_name="a[/red].jpg", file_name_b64="", text="[bold]x[/bold] :bomb: \x1b[31m")
    (here / "captions.jsonl").write_bytes(row.as_json())
    result = invoke("show", "captions.jsonl", env={"COLUMNS": "120"})
    assert result.exit_code == 0
    for part in ("a[/red].jpg", "[bold]x[/bold] :bomb: \\x1b[31m"):
        assert part in result.stdout
    assert not STEERING.search(result.stdout)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_a_terminal_there_is_a_bar_and_failures_are_named_above_it(here: Path) -> None:
    images = draw_scenes(here / "images", 4)
    hostile_image(images)
    printed = on_terminal("caption", "images", *TINY, "--batch-size", "1", cwd=here).decode()
    assert re.search(r"100%\|.*\| 5/5 \[.* images/s, failed=1\]", printed)
    assert re.search(r"\r\\x1b\[2J\\x07\\u202e\\x9b31m\\u200b\[red\]:bomb:\\r\\n\\x7f.png: not_an_image", printed)
    assert not STEERING.search(printed.replace("\r", ""))


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_table_on_a_terminal_has_no_colours_with_no_color(here: Path, no_color: str) -> None:
    (here / "captions.jsonl").write_bytes(text_row(file_name="a.jpg", file_name_b64="", text="x").as_json())
    printed = on_terminal("show", "captions.jsonl", cwd=here, NO_COLOR=no_color).decode()
    assert "a.jpg" in printed
    codes = {code for codes in re.findall("\x1b\\[([0-9;]*)m", printed) for code in codes.split(";")}
    assert codes == {"0", "1"}  # bold, which NO_COLOR does not ask to leave out


def test_a_table_in_a_pipe_has_no_escapes(here: Path) -> None:
    (here / "captions.jsonl").write_bytes(text_row(file_name="a.jpg", file_name_b64="", text="x").as_json())
    assert "\x1b" not in invoke("show", "captions.jsonl").stdout


def test_elsewhere_there_is_a_plain_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    progress = choose_progress(quiet=False, rows_on_terminal=False, count=None)
    assert isinstance(progress, Lines)
    progress.update(3, 1)
    assert capsys.readouterr().err == ""
    progress.printed -= 31
    progress.update(4, 1)
    progress.update(5, 1)
    progress.say("said")
    progress.close()
    line, said = capsys.readouterr().err.splitlines()
    assert line.startswith("4 images done, 1 failed, ")
    assert line.endswith(" images/s")
    assert said == "said"
    progress.workers(3)
    progress.printed -= 31
    progress.update(6, 1)
    assert capsys.readouterr().err.endswith(" images/s, 3 workers\n")


def test_a_quiet_run_has_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    progress = choose_progress(quiet=True, rows_on_terminal=False, count=None)
    assert isinstance(progress, Silent)
    progress.update(3, 1)
    progress.close()
    assert capsys.readouterr() == ("", "")
