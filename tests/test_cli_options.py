"""A flag, a variable or a config key reaches the field of its dataclass, and nothing else."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from blip2cap.cli.options import ReportOptions, option, option_of, with_options
from blip2cap.flags import PANELS, Flag, flags_of
from blip2cap.generate_options import GenerateOptions, TextOptions
from blip2cap.options import BatchOptions, DecodeOptions, ModelOptions, OutputOptions, SourceOptions

CLASSES: Mapping[str, Any] = {
    "source": SourceOptions,
    "model": ModelOptions,
    "batch": BatchOptions,
    "decode": DecodeOptions,
    "generate": GenerateOptions,
    "text": TextOptions,
    "output": OutputOptions,
    "report": ReportOptions,
}
FIELDS = [(name, *pair) for name, options in CLASSES.items() for pair in flags_of(options)]
IDS = [its_flag.long_name or field.name for _, field, its_flag in FIELDS]
VALUES = {
    "device": "cuda:1",
    "out": "other.parquet",
    "shard": "2/3",
    "retry-only": ["unreachable", "timeout"],
    "timeout": 2.5,
    "top-p": 0.5,
}
"""Values for options that do not accept every value of their type."""
NEEDED = {
    "top-p": ["--temperature", "0.7"],
    "top-k": ["--temperature", "0.7"],
    "length-penalty": ["--num-beams", "9"],
    "num-captions": ["--num-beams", "9"],
    "part-size": ["--out", "parts/"],
    "shard": ["--out", "parts/"],
}
"""Options that another option requires."""


def value_of(field: Field[Any], its_flag: Flag) -> Any:
    """Return a value that is not the default."""
    if its_flag.choices:
        return its_flag.choices[-1]
    types = {"bool": True, "int": 7, "float": 1.5, "str": "some text", "tuple[str, ...]": ["a", "b c"]}
    return VALUES.get(its_flag.long_name, types[str(field.type).removesuffix(" | None")])


def run(*args: str, env: Mapping[str, str] | None = None, **settings: Any) -> dict[str, Any]:
    """Run a command that takes every dataclass; return what it was called with."""
    calls: list[dict[str, Any]] = []

    @with_options(**settings)
    def command(
        source: SourceOptions,
        model: ModelOptions,
        batch: BatchOptions,
        decode: DecodeOptions,
        generate: GenerateOptions,
        text: TextOptions,
        output: OutputOptions,
        report: ReportOptions,
        said: Annotated[list[str] | None, option("--say TEXT", "Its own.", panel="Other", once=False)] = None,
        least: Annotated[int, option("-l, --least N", "Its own.", panel="Other")] = 3,
    ) -> None:
        calls.append(dict(locals()))

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    result = CliRunner().invoke(app, list(args), env=env)
    assert result.exit_code == 0, result.output
    return {name: calls[0][name] for name in (*CLASSES, "said", "least")}


def as_args(its_flag: Flag, value: Any) -> list[str]:
    """Write an option as people type it."""
    values = value if isinstance(value, list) else [value]
    if not its_flag.names:
        return values
    return [word for one in values for word in (its_flag.names[0], *([] if one is True else [str(one)]))]


def outcome(name: str, field: Field[Any], value: Any, needed: list[str]) -> dict[str, Any]:
    """Return what the command is called with if just one field has another value."""
    expected = run("in.png", *needed)
    before = {each: getattr(expected[name], each) for each in asdict(expected[name])}
    value = tuple(value) if isinstance(value, list) else value
    assert before[field.name] != value
    return expected | {name: CLASSES[name](**(before | {field.name: value}))}


@pytest.mark.parametrize(("name", "field", "its_flag"), FIELDS, ids=IDS)
def test_a_flag_reaches_its_field_and_no_other(name: str, field: Field[Any], its_flag: Flag) -> None:
    value, needed = value_of(field, its_flag), NEEDED.get(its_flag.long_name, [])
    inputs = ["in.png"] if its_flag.names else []
    assert run(*inputs, *needed, *as_args(its_flag, value)) == outcome(name, field, value, needed)


@pytest.mark.parametrize(("name", "field", "its_flag"), FIELDS, ids=IDS)
def test_a_variable_reaches_its_field_if_the_option_is_given_once(name: str, field: Field[Any], its_flag: Flag) -> None:
    value, needed = value_of(field, its_flag), NEEDED.get(its_flag.long_name, [])
    variable = {f"BLIP2CAP_{its_flag.long_name.replace('-', '_').upper()}": str(value)}
    several = isinstance(value, list)
    expected = run("in.png", *needed) if several else outcome(name, field, value, needed)
    assert run("in.png", *needed, env=variable) == expected


@pytest.mark.parametrize(("name", "field", "its_flag"), FIELDS, ids=IDS)
def test_a_config_key_reaches_its_field(name: str, field: Field[Any], its_flag: Flag, tmp_path: Path) -> None:
    value, needed = value_of(field, its_flag), NEEDED.get(its_flag.long_name, [])
    file = tmp_path / "options.toml"
    file.write_text(f"{its_flag.long_name or field.name} = {json.dumps(value)}")
    inputs = ["in.png"] if its_flag.names else []
    assert run(*inputs, *needed, "--config", str(file)) == outcome(name, field, value, needed)


def test_without_flags_every_field_has_its_default() -> None:
    expected = {name: options() for name, options in CLASSES.items() if name != "source"}
    assert run("in.png") == expected | {"source": SourceOptions(inputs=("in.png",)), "said": None, "least": 3}


def test_a_command_has_options_of_its_own_too() -> None:
    call = run("in.png", "--say", "a b", "--say", "c", env={"BLIP2CAP_LEAST": "4", "BLIP2CAP_SAY": "d"})
    assert (call["said"], call["least"]) == (["a b", "c"], 4)


def test_a_command_may_have_another_default() -> None:
    call = run("in.png", out="answers.jsonl", max_new_tokens=10)
    assert (call["output"], call["generate"]) == (
        OutputOptions(out="answers.jsonl"),
        GenerateOptions(max_new_tokens=10),
    )
    assert run("in.png", "--max-new-tokens", "5", max_new_tokens=10)["generate"] == GenerateOptions(max_new_tokens=5)


def names(command: Callable[..., None]) -> set[str]:
    return set(inspect.signature(command).parameters)


def test_a_command_may_leave_options_out_or_take_a_few_only() -> None:
    def command(batch: BatchOptions, decode: DecodeOptions) -> None: ...

    every = {"batch_size", "decode", "threads", "timeout", "isolate", "allow_http", "config"}
    assert names(with_options()(command)) == every
    assert names(with_options(without=["threads"])(command)) == every - {"threads"}
    assert names(with_options(only=["batch_size", "decode"])(command)) == {"batch_size", "decode", "config"}


@pytest.mark.parametrize("settings", [{"only": ["batch_sice"]}, {"without": ["batch_sice"]}, {"batch_sice": 4}])
def test_a_misspelt_option_of_a_command_is_found(settings: dict[str, Any]) -> None:
    def command(batch: BatchOptions) -> None: ...

    with pytest.raises(AssertionError):
        with_options(**settings)(command)


def test_one_field_can_be_taken_alone() -> None:
    numbers, patterns = option_of(SourceOptions, "limit"), option_of(SourceOptions, "include")
    assert (numbers.default, numbers.envvar, numbers.metavar) == ("--limit", "BLIP2CAP_LIMIT", "N")
    assert (patterns.default, patterns.envvar) == ("--include", None)


@pytest.mark.parametrize(("name", "field", "its_flag"), FIELDS, ids=IDS)
def test_every_flag_is_explained_in_one_panel(name: str, field: Field[Any], its_flag: Flag) -> None:
    assert its_flag.panel in PANELS
    assert its_flag.help.endswith(".")
    assert (its_flag.metavar == "") == (field.type == "bool")


def test_no_two_fields_have_one_flag() -> None:
    flags = [name for _, _, its_flag in FIELDS for name in its_flag.names]
    assert len(flags) == len(set(flags)) > 40
