"""The command line: one file per command; parses, builds options, makes one call, prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from blip2cap import __version__
from blip2cap.cli.arguments import EPILOG
from blip2cap.cli.bench import bench
from blip2cap.cli.caption import caption
from blip2cap.cli.export import run_export
from blip2cap.cli.show import show
from blip2cap.cli.status import status
from blip2cap.cli.terminal import clean
from blip2cap.cli.vqa import vqa

SPIN_COUNT = "10000"
"""How often a waiting thread looks before it sleeps: about 10 us, enough for the next operation to come."""
_USAGE_ERROR: Any = typer.BadParameter.__base__
"""What typer raises for arguments that it cannot parse; older versions give it no public name."""


@contextmanager
def _harmless() -> Iterator[None]:
    try:
        yield
    except _USAGE_ERROR as error:
        error.message = clean(error.message)
        raise


class Commands(TyperGroup):
    """The commands; what typer repeats of their arguments, which may be file names, is made harmless."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what comes before the command."""
        with _harmless():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command of this call."""
        with _harmless():
            return super().invoke(ctx)


app = typer.Typer(
    name="blip2cap",
    cls=Commands,
    help="Captions and answers for folders of images, with BLIP-2: fast, resumable, on a GPU or a CPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"blip2cap {__version__}\n")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Captions and answers for folders of images, with BLIP-2: fast, resumable, on a GPU or a CPU."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read when torch is imported. A thread of torch's that waits for the others spins for milliseconds unless told
        # otherwise, on a core that a decoder, or another program, could use.
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


app.command(epilog=EPILOG)(caption)
app.command(epilog=EPILOG)(vqa)
app.command()(show)
app.command()(status)
app.command("export")(run_export)
app.command(epilog=EPILOG)(bench)
