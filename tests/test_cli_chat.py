"""`blip2cap chat`: questions from a pipe, and a conversation in a terminal."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from tests.commands import TINY, draw_scenes, environment, invoke, read_rows, start

FAST = (*TINY, "--max-new-tokens", "10")


@pytest.fixture
def image(here: Path) -> Path:
    return draw_scenes(here / "images", 2) / "000.png"


def test_each_line_of_a_pipe_gets_an_answer_of_one_line(image: Path) -> None:
    questions = b"is it day or night?\nwhere is it?\nis it day or night?"
    result = invoke("chat", image, *FAST, stdin=questions)
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 3
    assert result.stdout.splitlines()[0] in ("day", "night")


def test_lines_with_a_slash_are_commands(image: Path, here: Path) -> None:
    other = image.with_name("001.png")
    lines = f"is it day or night?\n/save one.jsonl\n/image {other}\nwhere is it?\n/save two.jsonl\n/quit\nnever asked\n"
    result = invoke("chat", image, *FAST, stdin=lines.encode())
    assert result.exit_code == 0, result.stderr
    answers = result.stdout.splitlines()
    assert read_rows(here / "one.jsonl") == [
        {"file_name": str(image), "turn": 1, "question": "is it day or night?", "answer": answers[0]}
    ]
    assert read_rows(here / "two.jsonl") == [
        {"file_name": str(other), "turn": 1, "question": "where is it?", "answer": answers[1]}
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"is it day?\n\n", "line 2: a question is empty"),
        (b"/nonsense\n", "line 1: /nonsense: unknown. Expected /image FILE, /reset, /save FILE, /help or /quit."),
        (b"/image missing.png\n", "line 1: missing.png: vanished"),
        (b"/save images/000.png\n", "line 1: /save images/000.png: exists"),
        (b"/save\n", "line 1: /save: expected a file name after it"),
    ],
)
def test_a_line_that_cannot_be_answered_ends_a_pipe(image: Path, lines: bytes, message: str) -> None:
    result = invoke("chat", image, *FAST, stdin=lines)
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_image_that_cannot_be_read_is_named(here: Path) -> None:
    result = invoke("chat", "missing.png", *FAST)
    assert result.exit_code == 2
    assert "missing.png: vanished" in result.stderr


def test_in_a_terminal_errors_are_shown_and_the_conversation_goes_on(image: Path, here: Path) -> None:
    ours, theirs = os.openpty()
    process = start(
        "chat", image, *FAST, cwd=here, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(TERM="dumb")
    )
    os.close(theirs)
    printed = b""
    for line in (b"/wrong\n", b"/image missing.png\n", b"is it day or night?\n", b"/save talk.jsonl\n", b"\x04"):
        until = time.monotonic() + 60
        while not printed.endswith(b"> "):
            assert time.monotonic() < until, printed
            printed += os.read(ours, 65536)
        os.write(ours, line)
        printed += b"\n"
    with contextlib.suppress(OSError):  # EIO: nobody holds the other end any more
        while block := os.read(ours, 65536):
            printed += block
    os.close(ours)
    assert process.wait() == 0, printed
    assert b"/wrong: unknown" in printed
    assert b"missing.png: vanished" in printed
    assert b"talk.jsonl: 1 turn\r\n" in printed
    (turn,) = read_rows(here / "talk.jsonl")
    assert turn["answer"] in ("day", "night")
    assert turn["answer"].encode() in printed
