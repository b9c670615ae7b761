from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer.main

from blip2cap.cli import app
from tests.commands import invoke, names_below, read_rows


def plan(scenes: Path, *args: str, env: dict[str, str] | None = None, command: str = "caption") -> dict[str, object]:
    """Return the output of a dry run."""
    facts: dict[str, object] = json.loads(invoke(command, scenes, *args, "--dry-run", "--json", env=env).stdout)
    return facts


def config(here: Path, content: str) -> tuple[str, str]:
    (here / "config.toml").write_text(content, encoding="utf-8")
    return "--config", "config.toml"


def test_a_flag_beats_the_variable_beats_the_file_beats_the_default(scenes: Path, here: Path) -> None:
    file = config(here, 'out = "file.jsonl"')
    variable = {"BLIP2CAP_OUT": "variable.jsonl"}
    assert plan(scenes)["out"] == "captions.jsonl"
    assert plan(scenes, *file)["out"] == "file.jsonl"
    assert plan(scenes, *file, env=variable)["out"] == "variable.jsonl"
    assert plan(scenes, *file, "--out", "flag.jsonl", env=variable)["out"] == "flag.jsonl"


def test_a_table_counts_for_its_command_only_and_beats_the_top(scenes: Path, here: Path) -> None:
    file = config(
        here, 'limit = 4\nout = "top.jsonl"\n[caption]\nlimit = 3\n[vqa]\nout = "vqa.jsonl"\nquestion = "what?"'
    )
    assert (plan(scenes, *file)["images"], plan(scenes, *file)["out"]) == (3, "top.jsonl")
    facts = plan(scenes, *file, command="vqa")
    assert (facts["images"], facts["out"], facts["rows_to_do"]) == (4, "vqa.jsonl", 4)


def test_options_are_called_as_on_the_command_line_with_either_dash(scenes: Path, here: Path) -> None:
    (here / "list.txt").write_text("\n".join(str(scenes / name) for name in names_below(scenes)[:2]))
    (here / "questions.txt").write_text("what?\nwhere?\n")
    file = config(
        here, 'json = true\nfiles_from = "list.txt"\nquestions = "questions.txt"\ndry-run = true\nnull = false'
    )
    facts = json.loads(invoke("vqa", *file).stdout)
    assert (facts["images"], facts["rows_to_do"]) == (2, 4)


def test_options_that_may_be_repeated_take_one_value_or_a_list(scenes: Path, here: Path) -> None:
    assert plan(scenes, *config(here, 'question = "what is it?"'), command="vqa")["rows_to_do"] == 5
    assert plan(scenes, *config(here, 'question = ["what?", "where?"]'), command="vqa")["rows_to_do"] == 10
    file = config(here, f'inputs = ["{scenes}"]\n')
    assert json.loads(invoke("caption", *file, "--dry-run", "--json").stdout)["images"] == 5


def test_a_file_sets_options_that_reach_the_model(scenes: Path, here: Path) -> None:
    file = config(here, 'model = "tiny"\n[caption]\nprompt = "a"\nmax-new-tokens = 2')
    invoke("caption", scenes, *file)
    settings = json.loads((here / "captions.jsonl.run.json").read_text())["settings"]
    assert (settings["model"], settings["prompt"], settings["max_new_tokens"]) == ("tiny", "a", 2)
    assert all(row["num_tokens"] <= 2 for row in read_rows(here / "captions.jsonl"))


def test_a_variable_can_name_the_file_and_turn_flags_on(scenes: Path, here: Path) -> None:
    config(here, "limit = 2")
    variables = {"BLIP2CAP_CONFIG": "config.toml", "BLIP2CAP_DRY_RUN": "1", "BLIP2CAP_JSON": "true"}
    assert json.loads(invoke("caption", scenes, env=variables).stdout)["images"] == 2


def test_an_empty_variable_is_none(scenes: Path, here: Path) -> None:
    assert plan(scenes, env={"BLIP2CAP_LIMIT": "", "BLIP2CAP_OUT": ""})["out"] == "captions.jsonl"


def test_a_variable_is_no_way_to_ask_as_it_would_be_cut_at_spaces(scenes: Path, here: Path) -> None:
    result = invoke("vqa", scenes, "--dry-run", env={"BLIP2CAP_QUESTION": "what is it?"})
    assert result.exit_code == 2
    assert "no question given" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "batchsize = 4",
            "unknown option batchsize. caption has: allow-http, base-url, batch-size, concurrency",
        ),
        ("question = 'what?'", "unknown option question"),
        ("[caption]\nas_json = true", "unknown option as_json"),
        ("config = 'other.toml'", "unknown option config"),
        ("[shows]\nlimit = 1", "unknown option shows"),
        ("caption = 1", "expected [caption] to be a table"),
        ("model tiny", "is not TOML"),
        ("limit = 'many'", "--limit"),
        ("limit = 0", "--limit 0: must be 1 or more"),
        ('"\\u001b[2J" = 1', "unknown option \\x1b[2J"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(scenes: Path, here: Path, content: str, message: str) -> None:
    result = invoke("caption", scenes, "--dry-run", *config(here, content))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "\x1b" not in result.stderr


def test_a_file_may_have_a_table_for_every_command(scenes: Path, here: Path) -> None:
    group: Any = typer.main.get_command(app)
    tables = "".join(f"[{name}]\nnothing = 1\n" for name in group.commands if name != "caption")
    assert "[check-data]" in tables
    assert plan(scenes, *config(here, tables + "[caption]\nlimit = 2"))["images"] == 2


def test_a_file_that_is_missing_or_not_text_is_refused(scenes: Path, here: Path) -> None:
    result = invoke("caption", scenes, "--config", "missing.toml")
    assert result.exit_code == 2
    assert "missing.toml cannot be read: No such file or directory." in result.stderr
    (here / "binary.toml").write_bytes(b"\xff\xfe")
    assert "binary.toml is not TOML" in invoke("caption", scenes, "--config", "binary.toml").stderr
