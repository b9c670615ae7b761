"""`blip2cap import-lavis`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from blip2cap.cli.options import ReportOptions, option, option_of, with_options
from blip2cap.cli.signals import stop_on_signal
from blip2cap.cli.terminal import say
from blip2cap.options import ModelOptions


@with_options(only=["quiet"])
def import_lavis(
    report: ReportOptions,
    checkpoint: Annotated[
        Path, option("CHECKPOINT", "File that LAVIS has saved, such as checkpoint_best.pth.", panel="Input")
    ],
    base: Annotated[
        str,
        option(
            "--base NAME",
            "Model that it was trained from, a hub id or a folder: gives settings, tokenizer and what was frozen.",
            panel="Model",
        ),
    ],
    out: Annotated[
        Path, option("-o, --out DIR", "New folder for the model, which --model then names.", panel="Output", once=False)
    ],
    revision: Annotated[str | None, option_of(ModelOptions, "revision")] = None,
) -> None:
    """Make a model of a checkpoint that LAVIS has saved.

    Of BLIP-2 or InstructBLIP, with all parameters or only those that were trained. Only tensors are loaded, no code.
    The folder is a model for this program and for transformers.
    """
    with stop_on_signal(quiet=report.quiet):
        from blip2cap.lavis import run

        run.import_lavis(checkpoint, ModelOptions(name=base, revision=revision), out, say=say, quiet=report.quiet)
