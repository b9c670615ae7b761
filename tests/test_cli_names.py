"""A thousand names that would control a terminal, break a line, or be taken for an option, markup or a format."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import random
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import invoke, read_rows
from tests.zygote import Zygote

RUN = ("caption", "images", "--model", "tiny", "--batch-size", "64", "--threads", "1")
NUM_NAMES = 1000
PARTS = [
    *(bytes([value]) for value in range(1, 256) if value != ord("/")),
    *(b"\r\n", b"\n\n", b"\x1b[2J", b"\x1b]0;title\x07", b"\x1bP", b"\x9b31m", "\u009b31m".encode()),
    *(character.encode() for character in "\u202e\u2066\u200b\u200f\u2028\u2029\ufeff\u061c\U000e0041"),
    *(b"[bold]", b"[red]", b"[link=x]", b":bomb:", b"%s", b"%n", b"%(a)s", b"{}", b"{0.__class__}"),
    *(b"{stem}", b"{:>999999999}", b"$(touch x)", b"`id`", b"-", b"--overwrite", b"-o", b"\\n", b"\\x1b", b"'", b'"'),
    *(
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xf0\x9f",
        "é".encode(),
        "e\u0301".encode(),
        "海".encode(),
        "\U0001f600".encode(),
    ),
]
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
STEERING_ROWS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Categories that rows hold unescaped: characters without a width are part of words and of emoji."""


def hostile_names() -> list[bytes]:
    rng = random.Random(3)
    names = {part + b".png" for part in PARTS} | {
        b"-.png",
        b"--help.png",
        b"x" * 251 + b".png",
        b"\x1b" * 251 + b".png",
    }
    names |= {b"-" + part + b".png" for part in PARTS}
    while len(names) < NUM_NAMES:
        name = b"".join(rng.choices(PARTS, k=rng.randint(1, 12)))[:251] + b".png"
        names.add(name)
    return sorted(name for name in names if not name.startswith(b"."))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images`: every second one is none. Not to be changed."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "images").mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    for number, name in enumerate(hostile_names()):
        with open(os.path.join(os.fsencode(folder / "images"), name), "wb") as file:
            file.write(b"no image" if number % 2 else picture.getvalue())
    return folder


def check(printed: str | bytes, steering: re.Pattern[str] = STEERING) -> None:
    text = printed.decode() if isinstance(printed, bytes) else printed
    assert not (found := steering.search(text)), ascii(text[max(0, found.start() - 40) : found.end() + 40])


def test_every_row_has_the_name_and_where_it_is_no_text_its_bytes(zygote: Zygote, folder: Path) -> None:
    assert zygote.run(*RUN, "--verbose", cwd=folder, out="stdout") == 3
    said = (folder / "said").read_bytes()
    check(said)
    assert said.count(b".png: not_an_image: ") == sum(number % 2 for number in range(len(hostile_names())))
    content = (folder / "captions.jsonl").read_bytes()
    check(content, STEERING_ROWS)
    rows = read_rows(content)
    assert [row["file_name"] for row in rows] == [name.decode("utf-8", "backslashreplace") for name in hostile_names()]
    for row, name in zip(rows, hostile_names(), strict=True):
        try:
            name.decode()
            assert row["file_name_b64"] == ""
        except UnicodeDecodeError:
            assert base64.b64decode(row["file_name_b64"]) == name
    assert zygote.run(*RUN, cwd=folder, said="again") == 3
    assert f"{len(rows)} already done" in (folder / "again").read_text()


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--json"], ["--quiet"], ["-o", "-"], ["--verbose", "-o", "-"]])
def test_no_control_character_reaches_stderr_or_stdout(zygote: Zygote, folder: Path, options: list[str]) -> None:
    options = options if "-o" in options else [*options, "-o", f"out{'_'.join(options)}.jsonl"]
    name = "_".join(options)
    code = zygote.run(*RUN, *options, cwd=folder, said=f"said{name}", out=f"stdout{name}")
    assert code == (0 if "--dry-run" in options else 3)
    check((folder / f"said{name}").read_bytes())
    check((folder / f"stdout{name}").read_bytes(), STEERING_ROWS)


def test_no_control_character_but_the_bar_s_own_reaches_a_terminal(zygote: Zygote, folder: Path) -> None:
    ours, theirs = os.openpty()
    command = (*RUN, "--verbose", "-o", "bar.jsonl")
    process = zygote.start(*command, cwd=folder, said=os.ttyname(theirs), out="stdout")
    printed = os.read(ours, 65536)
    os.close(theirs)  # only now: the process may have been slow to open it
    with contextlib.suppress(OSError):  # EIO: nobody holds the other end any more
        while block := os.read(ours, 65536):
            printed += block
    os.close(ours)
    assert zygote.wait(process) == 3
    assert b" images/s" in printed
    check(printed.replace(b"\r", b""))


def test_names_that_are_given_one_by_one_or_in_lists_are_names(zygote: Zygote, folder: Path) -> None:
    names = hostile_names()
    (folder / "list").write_bytes(b"\0".join(b"images/" + name for name in names))
    assert zygote.run(*RUN[:1], "-0", "--files-from", "list", *RUN[2:], "-o", "list.jsonl", cwd=folder) == 3
    rows = read_rows(folder / "list.jsonl")
    assert [row["file_name"] for row in rows] == [
        f"images/{name.decode('utf-8', 'backslashreplace')}" for name in names
    ]
    some = [os.fsdecode(name) for name in names[::9]]
    assert (
        zygote.run("caption", "-m", "tiny", "-o", "../some.jsonl", "--", *some, cwd=folder / "images", said="../one")
        == 3
    )
    check((folder / "one").read_bytes())
    assert len(read_rows(folder / "some.jsonl")) == len(some)


def test_a_table_of_rows_is_harmless(zygote: Zygote, folder: Path) -> None:
    assert zygote.run(*RUN, "-o", "table.jsonl", cwd=folder) == 3
    check(invoke("show", folder / "table.jsonl", "--limit", "2000").output)


def errors_with(text: str) -> list[tuple[str, ...]]:
    """Return commands that fail with a text in their message."""
    return [
        ("caption", f"missing/{text}"),
        ("caption", "images", "-m", f"./missing/{text}"),
        ("caption", "images", "-o", f"missing/{text}.jsonl"),
        ("caption", "images", "-o", text),
        ("caption", "images", "--prompt", f"{{{text}}}"),
        ("vqa", "images", "-q", text, "-q", text),
        ("show", text),
        (f"--{text}",),
    ]


def test_every_error_is_harmless(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in hostile_names()[::100]:
        for command in errors_with(os.fsdecode(name)):
            result = invoke(*command)
            assert result.exit_code in (2, 4, 6), command
            assert result.stderr
            check(result.output_bytes)


def test_every_error_of_a_process_is_harmless(zygote: Zygote, folder: Path) -> None:
    """Of a name that is not text, whose bytes a process is given."""
    for number, command in enumerate(errors_with(os.fsdecode(b"\xff\x1b[2J\r\xc2\x9b31m"))):
        assert zygote.run(*command, cwd=folder, said=f"error{number}") in (2, 4, 6), command
        check((folder / f"error{number}").read_bytes())


@pytest.mark.parametrize("prompt", ["{0.__class__}", "{:>999999999}", "{stem:>999999999}", "{stem!r}"])
def test_formats_in_a_prompt_are_refused_before_anything_is_done(here: Path, scenes: Path, prompt: str) -> None:
    result = invoke("caption", scenes, "--prompt", prompt)
    assert (result.exit_code, [*here.iterdir()]) == (2, [])
    assert "unknown field" in result.stderr


@pytest.mark.parametrize(
    ("prompt", "filled"), [("%s %(stem)s", "%s %(stem)s"), ("{{stem}}", "{000}"), ("$stem", "$stem")]
)
def test_other_text_in_a_prompt_is_taken_as_it_stands(
    zygote: Zygote, here: Path, scenes: Path, prompt: str, filled: str
) -> None:
    assert zygote.run("caption", scenes / "000.png", "-m", "tiny", "--prompt", prompt, cwd=here) == 0
    assert read_rows(here / "captions.jsonl")[0]["text"].startswith(f"{filled} ")
