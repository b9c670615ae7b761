"""The page docs/options.md, made from the parameters of the commands: `python -m tests.make_reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer.main

from blip2cap.cli import app
from blip2cap.flags import PANELS

COMMANDS = ("caption", "vqa", "match", "embed")
PAGE = Path(__file__).parent.parent / "docs" / "options.md"
INTRODUCTION = """\
# Options of `caption`, `vqa`, `match` and `embed`

<!-- Made by `python -m tests.make_reference`. Do not edit. -->

Every option that is given at most once can also be set by a variable, `BLIP2CAP_BATCH_SIZE=8`, or in a TOML file,
`--config FILE`. A flag overrides the variable, the variable overrides the file.

```toml
model = "tiny"            # for every command
include = ["*.png"]       # repeatable options take a list

[caption]                 # for one command
prompt = "a photo of"
num-beams = 3
```
"""


def reference() -> str:
    """Return the page."""
    commands: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    page = INTRODUCTION
    for panel in PANELS:
        options: dict[tuple[str, str], dict[str, Any]] = {}
        """The parameter of each command that has the option, by its name and help."""
        for command in COMMANDS:
            for each in commands[command].params:
                if each.rich_help_panel == panel:
                    options.setdefault((each.name, each.help), {})[command] = each
        if not options:
            continue  # a section of other commands
        page += f"\n## {panel}\n\n| option | default | |\n|---|---|---|\n"
        for owners in sorted(options.values(), key=lambda owners: not _is_argument(owners)):
            each = next(iter(owners.values()))
            only = f" ({', '.join(f'`{name}`' for name in owners)} only)" if len(owners) < len(COMMANDS) else ""
            page += f"| {_usage(each)}{only} | {_defaults(owners)} | {each.help} |\n"
    return page


def _is_argument(owners: dict[str, Any]) -> bool:
    return any(each.param_type_name == "argument" for each in owners.values())


def _defaults(by_command: dict[str, Any]) -> str:
    """Return the default of the first command, and those of the others that differ."""
    defaults = {command: _default(parameter) for command, parameter in by_command.items()}
    first, *others = defaults
    different = [f"`{command}`: {defaults[command]}" for command in others if defaults[command] != defaults[first]]
    return ", ".join([defaults[first], *different])


def _usage(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    return f"`{', '.join(parameter.opts)}{f' {parameter.metavar}' if parameter.metavar else ''}`"


def _default(parameter: Any) -> str:
    return "" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
