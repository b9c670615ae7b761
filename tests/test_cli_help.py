from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from blip2cap import __version__
from blip2cap.cli import app
from blip2cap.flags import PANELS, flags_of
from blip2cap.generate_options import ANSWER_NEW_TOKENS, GenerateOptions, TextOptions
from blip2cap.options import DEFAULT_MODEL, BatchOptions, DecodeOptions, ModelOptions
from tests.commands import finish, invoke, start
from tests.make_reference import PAGE, reference

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
DEFAULTS = {"caption": GenerateOptions(), "vqa": GenerateOptions(max_new_tokens=ANSWER_NEW_TOKENS)}


def parameters(command: str) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in COMMANDS[command].params}


@pytest.mark.parametrize("help_flag", ["-h", "--help"])
@pytest.mark.parametrize(
    "command",
    [
        *("caption", "vqa", "match", "embed", "index", "search", "duplicates", "show", "export"),
        *("check-data", "evaluate", "import-lavis"),
    ],
)
def test_every_command_explains_all_its_options(command: str, help_flag: str) -> None:
    result = invoke(command, help_flag)
    assert (result.exit_code, result.stderr) == (0, "")
    for parameter in COMMANDS[command].params:
        assert parameter.help
        assert all(flag in result.stdout for flag in parameter.opts if flag.startswith("-"))


@pytest.mark.parametrize("command", ["caption", "vqa"])
@pytest.mark.parametrize("width", [60, 80, 110])
def test_the_help_has_a_section_for_each_panel_and_fits_the_terminal(command: str, width: int) -> None:
    lines = COMMANDS[command].get_help(typer.Context(COMMANDS[command], terminal_width=width)).splitlines()
    assert [line[:-1] for line in lines if re.fullmatch(r"[A-Z][a-z ]+:", line)] == [
        panel for panel in PANELS if panel != "Training"
    ]
    assert max(map(len, lines)) <= width
    columns = {match.start(2) for line in lines if (match := re.match(r"  (-.*?)  +(\S)", line))}
    assert len(columns) == 1


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_the_help_of_all_names_every_command(arguments: tuple[str, ...]) -> None:
    stdout = invoke(*arguments).output
    for name, command in COMMANDS.items():
        assert name in stdout
        assert command.help.splitlines()[0] in stdout


def test_without_arguments_the_help_is_the_message() -> None:
    result = invoke()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == invoke("--help").stdout
    assert result.stderr.count("\n") > len(COMMANDS)


@pytest.mark.parametrize("arguments", [("--help",), ("caption", "--help"), ("--version",)])
def test_help_for_a_full_disk_or_a_reader_that_has_gone_is_no_bug(arguments: tuple[str, ...], here: Path) -> None:
    full = start(*arguments, cwd=here, stdout=os.open("/dev/full", os.O_WRONLY))
    stderr = finish(full)[1].decode()
    assert (full.returncode, stderr.count("\n")) == (6, 1)
    assert "cannot be written: No space left on device" in stderr
    reader, writer = os.pipe()
    os.close(reader)
    gone = start(*arguments, cwd=here, stdout=writer)
    assert (finish(gone)[1], gone.returncode) == (b"", 141)


@pytest.mark.parametrize("command", DEFAULTS)
def test_the_defaults_are_those_of_the_dataclasses(command: str) -> None:
    given = parameters(command)
    for options in (DEFAULTS[command], DecodeOptions(), ModelOptions(), BatchOptions(), TextOptions()):
        for field, _ in flags_of(options):
            name = {"num_threads": "threads", "name": "model"}.get(field.name, field.name)
            if name in given:
                # An option that repeats has no default on the command line.
                assert given[name].default == (getattr(options, field.name) or given[name].default), name


@pytest.mark.parametrize("command", DEFAULTS)
def test_the_help_names_the_defaults(command: str) -> None:
    text = " ".join(invoke(command, "--help").stdout.split())
    options = DEFAULTS[command]
    for flag, default in {
        "model": DEFAULT_MODEL,
        "max-new-tokens": options.max_new_tokens,
        "num-beams": options.num_beams,
        "length-penalty": options.length_penalty,
        "seed": options.seed,
        "dtype": ModelOptions().dtype,
        "threads": DecodeOptions().num_threads,
    }.items():
        assert re.search(rf"--{flag} [A-Z][^\[]*\[default: {re.escape(str(default))}\]", text), flag


@pytest.mark.parametrize("command", DEFAULTS)
def test_every_option_that_is_given_once_has_a_variable_of_its_name(command: str) -> None:
    given = {name: parameter for name, parameter in parameters(command).items() if name not in ("inputs", "help")}
    several = {"files_from", "questions", "strip", "include", "exclude", "retry_only"}
    for name, parameter in given.items():
        long = next(flag[2:] for flag in parameter.opts if flag.startswith("--"))
        expected = None if name in several else f"BLIP2CAP_{long.replace('-', '_').upper()}"
        assert parameter.envvar == expected, name


def test_the_commands_share_names_flags_and_help() -> None:
    caption, vqa = parameters("caption"), parameters("vqa")
    shared = caption.keys() & vqa.keys()
    assert set(caption) - shared == {"prompt", "num_captions"}
    assert set(vqa) - shared == {"template", "questions", "questions_file"}
    for name in shared:
        assert (caption[name].opts, caption[name].help) == (vqa[name].opts, vqa[name].help)


def test_the_version_is_the_package_s() -> None:
    assert invoke("--version").stdout == f"blip2cap {__version__}\n"


def test_the_page_of_options_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `python -m tests.make_reference`"
