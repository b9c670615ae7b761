"""The command line: one file per command; parses, builds options, makes one call, prints."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from blip2cap import __version__
from blip2cap.cli.bench import bench
from blip2cap.cli.caption import caption
from blip2cap.cli.chat import chat
from blip2cap.cli.check_data import check_data
from blip2cap.cli.duplicates import duplicates
from blip2cap.cli.embed import embed
from blip2cap.cli.evaluate import evaluate
from blip2cap.cli.export import run_export
from blip2cap.cli.guard import fill_standard_descriptors, handle_errors
from blip2cap.cli.import_lavis import import_lavis
from blip2cap.cli.index import index
from blip2cap.cli.match import match
from blip2cap.cli.options import EPILOG, PanelCommand
from blip2cap.cli.prompts import prompts
from blip2cap.cli.search import search
from blip2cap.cli.show import show
from blip2cap.cli.status import status
from blip2cap.cli.terminal import write_out
from blip2cap.cli.train import train
from blip2cap.cli.vqa import vqa

SPIN_COUNT = "10000"
"""Number of polls of a waiting thread before it sleeps: about 10 us, enough for the next operation to arrive."""


class Commands(TyperGroup):
    """The commands. Whatever goes wrong in them, in their help or their arguments, is handled here."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options. For a switch without a default, typer would import pydantic to convert it: 0.1 s."""
        options = super().get_params(ctx)
        for each in options:
            if getattr(each, "is_flag", False):
                each.default = False
        return options

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments before the command."""
        fill_standard_descriptors()
        if not args:
            return super().parse_args(ctx, args)  # raises an error whose message is the help: nothing to clean
        with handle_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with handle_errors():
            return super().invoke(ctx)


app = typer.Typer(
    name="blip2cap",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(given: bool) -> None:
    if given:
        write_out(f"blip2cap {__version__}\n")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Captions and answers for folders of images, with BLIP-2: fast, resumable, on a GPU or a CPU."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read when torch is imported. By default, a waiting thread of torch spins for milliseconds, on a core that a
        # decoder or another program could use.
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


app.command(cls=PanelCommand, epilog=EPILOG)(caption)
app.command(cls=PanelCommand, epilog=EPILOG)(vqa)
app.command(cls=PanelCommand, epilog=EPILOG)(chat)
app.command(cls=PanelCommand, epilog=EPILOG)(match)
app.command(cls=PanelCommand, epilog=EPILOG)(embed)
app.command(cls=PanelCommand, epilog=EPILOG)(index)
app.command(cls=PanelCommand, epilog=EPILOG)(search)
app.command(cls=PanelCommand, epilog=EPILOG)(duplicates)
app.command("import-lavis", cls=PanelCommand, epilog=EPILOG)(import_lavis)
app.command("check-data", cls=PanelCommand, epilog=EPILOG)(check_data)
app.command()(prompts)
app.command()(show)
app.command()(status)
app.command(cls=PanelCommand, epilog=EPILOG)(evaluate)
app.command("export")(run_export)
app.command(cls=PanelCommand, epilog=EPILOG)(bench)
app.command(cls=PanelCommand, epilog=EPILOG)(train)
