"""Parameters of commands, made from the option dataclasses, and their help, one section for each panel."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from blip2cap.cli.config import load_config
from blip2cap.errors import UsageError
from blip2cap.flags import PANELS, Flag, flag, flags_of, parse_flag

EPILOG = (
    "Every option that is given at most once can also be set by a variable: BLIP2CAP_MODEL=tiny is --model tiny. "
    "A flag overrides the variable, the variable overrides the file of --config."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportOptions:
    """Messages and summary of a command."""

    PANEL: ClassVar = "Other"

    dry_run: bool = flag(False, "--dry-run", "Print what would be done. Load no model, write nothing.")
    quiet: bool = flag(False, "--quiet", "Print errors only.")
    verbose: bool = flag(False, "--verbose", "Name every image that fails.")
    as_json: bool = flag(False, "--json", "Print the summary as one JSON object on stdout.")

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise UsageError("--quiet and --verbose exclude each other.")


def option(usage: str, help: str, *, panel: str, once: bool = True, **settings: Any) -> Any:
    """Declare an option that only one command has, as metadata of `Annotated`.

    An option that is given at most `once` has the variable BLIP2CAP_<LONG NAME>; typer would split others at spaces.
    """
    return _typer_option(parse_flag(usage, help, panel=panel), once=once, **settings)


def option_of(options: Any, field: str) -> Any:
    """Return the option of one field, for a command that does not take the whole dataclass."""
    parameter = next(parameter for name, parameter in _parameters_of(options) if name == field)
    return get_args(parameter.annotation)[1]


def on_command_line(context: typer.Context, options: Any) -> Iterator[str]:
    """Yield flag and value of each option of a dataclass that stands on the command line: "--dtype float32".

    Not those of variables and of a config file, which are meant for all commands.
    """
    of: Any = type(options)
    names = dict(_parameters_of(of))
    for each, its_flag in flags_of(options):
        source = context.get_parameter_source(names[each.name].name)
        if source is not None and source.name == "COMMANDLINE":
            value = getattr(options, each.name)
            yield f"--{its_flag.long_name}{f' {value}' if its_flag.metavar else ''}"


def with_options(
    *, only: Collection[str] = (), without: Collection[str] = (), instead: Mapping[str, str] = {}, **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a parameter for each option of the dataclasses that it takes, and --config.

    typer sees one flat signature: the command's own parameters and those of the dataclasses. A call builds the
    dataclasses and passes them on; None for one that is `X | None` and of which no option is given. `instead` names
    such a dataclass and the command's own parameter that replaces it: then its options are refused. `only`, `without`
    and `defaults` name options by their long flag with underscores:
    with_options(without=["num_captions"], out="answers.jsonl").
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        given = [each.replace(annotation=hints[each.name]) for each in inspect.signature(command).parameters.values()]
        classes = {each.name: found for each in given if (found := _dataclass_in(each.annotation)) is not None}
        parameters = [each for each in given if each.name not in classes]
        fields: dict[str, dict[str, str]] = {}  # the option of each field, by dataclass parameter
        unknown = {*only, *without, *defaults}
        for given_as, options in classes.items():
            fields[given_as] = {}
            for field, parameter in _parameters_of(options):
                name = parameter.name
                unknown.discard(name)
                if name not in without and (name in only or not only):
                    fields[given_as][field] = name
                    parameters.append(parameter.replace(default=defaults.get(name, parameter.default)))
        assert not unknown, unknown
        parameters.append(_parameter("config", Path | None, _CONFIG, None))

        by_name = {each.name: each for each in parameters}

        @functools.wraps(command)
        def flat(config: Path | None = None, **values: Any) -> None:
            for each, options in fields.items():
                if values.get(instead.get(each, "")) is not None:
                    _check_unused([by_name[name] for name in options.values()], values, by_name[instead[each]])
                chosen = {field: values.pop(option) for field, option in options.items()}
                chosen = {field: tuple(value) if isinstance(value, list) else value for field, value in chosen.items()}
                chosen = {field: value for field, value in chosen.items() if value is not None}
                is_needed = hints[each] is classes[each] or any(chosen.values())
                values[each] = classes[each](**chosen) if is_needed else None
            command(**values)

        flat.__dict__["__signature__"] = inspect.Signature(parameters)
        flat.__annotations__ = {each.name: each.annotation for each in parameters}
        return flat

    return decorate


def _check_unused(unused: Sequence[inspect.Parameter], values: Mapping[str, Any], given: inspect.Parameter) -> None:
    """Raise UsageError if any of these parameters has a value: `given` leaves them without effect."""
    flag_of_given = _flag_of(given)
    for each in unused:
        if values[each.name] in (each.default, ()):
            continue
        if _flag_of(each) is None:
            what = f"{flag_of_given} and {get_args(each.annotation)[1].metavar} exclude each other."
        else:
            what = f"{_flag_of(each)} has no effect with {flag_of_given}."
        raise UsageError(f"{what} Leave one out.")


def _flag_of(parameter: inspect.Parameter) -> str | None:
    """Return the long flag of a parameter; None for a positional argument."""
    option = get_args(parameter.annotation)[1]
    names = (option.default, *(option.param_decls or ()))  # typer takes the first name for a default
    return next((name for name in names if isinstance(name, str) and name.startswith("--")), None)


def _dataclass_in(annotation: Any) -> Any:
    """Return the dataclass of a parameter that is one, or one or None; else None."""
    classes = [each for each in (annotation, *get_args(annotation)) if is_dataclass(each) and isinstance(each, type)]
    return classes[0] if classes and get_origin(annotation) is not Annotated else None


@functools.cache
def _parameters_of(options: Any) -> list[tuple[str, inspect.Parameter]]:
    """Return the fields of a dataclass that have a flag, each with its parameter, which is named after the flag."""
    types = get_type_hints(options)
    parameters = []
    for each, its_flag in flags_of(options):
        once = types[each.name] != tuple[str, ...]
        kind, default = (types[each.name], each.default) if once else (list[str] | None, None)
        name = its_flag.long_name.replace("-", "_") or each.name
        parameters.append((each.name, _parameter(name, kind, _typer_option(its_flag, once=once), default)))
    return parameters


class PanelCommand(TyperCommand):
    """A command whose help has a section for each panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, panel by panel, all in the same two columns."""
        panels: dict[str, list[tuple[str, str]]] = {panel: [] for panel in PANELS}
        arguments_first = sorted(self.get_params(ctx), key=lambda parameter: parameter.param_type_name != "argument")
        for parameter in arguments_first:
            if (record := parameter.get_help_record(ctx)) is not None:
                records = panels[getattr(parameter, "rich_help_panel", None) or PANELS[-1]]
                if parameter.param_type_name == "argument":
                    record = f"{parameter.metavar}{'...' if parameter.nargs == -1 else ''}", record[1]
                records.append(record)
        width = max(len(usage) for records in panels.values() for usage, text in records)
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl([(usage.ljust(width), text) for usage, text in records])


def _typer_option(its_flag: Flag, *, once: bool, **settings: Any) -> Any:
    settings |= {"help": its_flag.help, "rich_help_panel": its_flag.panel, "metavar": its_flag.metavar or None}
    if not its_flag.names:
        return typer.Argument(show_default=False, **settings)
    if its_flag.choices:
        settings["autocompletion"] = lambda: list(its_flag.choices)
    variable = f"BLIP2CAP_{its_flag.long_name.replace('-', '_').upper()}" if once else None
    return typer.Option(*its_flag.names, envvar=variable, show_envvar=False, **settings)


def _parameter(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    annotation = getitem(Annotated, (kind, option))
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


_CONFIG = option(
    "--config FILE",
    "TOML file with options; flags and BLIP2CAP_* variables override it.",
    panel="Other",
    callback=load_config,
    is_eager=True,
)
