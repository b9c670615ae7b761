"""The page docs/options.md, made from the parameters of the commands: `python -m tests.make_reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer.main

from blip2cap.cli import app
from blip2cap.flags import PANELS

PAGE = Path(__file__).parent.parent / "docs" / "options.md"
INTRODUCTION = """\
# Options of `caption` and `vqa`

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
    caption, vqa = ({each.name: each for each in commands[name].params} for name in ("caption", "vqa"))
    page = INTRODUCTION
    for panel in PANELS:
        page += f"\n## {panel}\n\n| option | default | |\n|---|---|---|\n"
        parameters = [each for each in (caption | vqa).values() if each.rich_help_panel == panel]
        for each in sorted(parameters, key=lambda each: each.param_type_name != "argument"):
            owner = "" if each.name in caption.keys() & vqa.keys() else "caption" if each.name in caption else "vqa"
            defaults = dict.fromkeys(_default(of[each.name]) for of in (caption, vqa) if each.name in of)
            command = f" (`{owner}` only)" if owner else ""
            page += f"| {_usage(each)}{command} | {', `vqa`: '.join(defaults)} | {each.help} |\n"
    return page


def _usage(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    return f"`{', '.join(parameter.opts)}{f' {parameter.metavar}' if parameter.metavar else ''}`"


def _default(parameter: Any) -> str:
    return "" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
