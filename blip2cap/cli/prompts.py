"""`blip2cap prompts`, and the place of the user's own library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip2cap.cli.report import print_json
from blip2cap.cli.terminal import clean, write_out
from blip2cap.prompt_library import read_library


def own_library() -> Path:
    """Return the path of the user's library, which need not exist."""
    return Path(typer.get_app_dir("blip2cap")) / "prompts.toml"


def prompts(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List the prompts by purpose that --prompt @NAME takes."""
    own = own_library()
    library = read_library(own).values()
    if as_json:
        shown = [{"name": each.name, "purpose": each.purpose, "text": each.text} for each in library]
        print_json({"prompts": shown, "own": str(own)})
        return
    lines = [f"@{clean(each.name)}: {clean(each.purpose)}\n  {clean(each.text)}\n" for each in library]
    write_out("".join(lines) + f"\nYour own: {clean(str(own))}\n")
