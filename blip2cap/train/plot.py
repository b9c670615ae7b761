"""The losses of a training as a picture: loss.png and loss.svg."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip2cap.errors import UsageError
from blip2cap.outputs.files import OS_FILES, write_whole
from blip2cap.train.write_errors import write_errors

PLOT = "loss.png"
_SIZE_INCHES = (8.0, 4.5)


def check_matplotlib() -> None:
    """Raise UsageError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "matplotlib is not installed; it draws loss.png and loss.svg. Install it: pip install 'blip2cap[train]'."
        )


def plot_losses(rows: Sequence[Mapping[str, Any]], folder: Path, *, title: str) -> None:
    """Draw the losses in the rows of metrics.jsonl, in training and evaluation, over the steps. Raises OutputError."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    names = {name: None for row in rows for name in row if name.startswith(("loss", "val_loss"))}
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        of_evaluation = name.startswith("val_")
        style: dict[str, Any] = {"marker": "o", "linestyle": "--"} if of_evaluation else {"linewidth": 1.2}
        axes.plot(*zip(*points, strict=True), label=name, markersize=4, **style)
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.grid(visible=True, alpha=0.3)
    if names:
        axes.legend()
    with mpl.rc_context({"svg.hashsalt": "blip2cap"}):  # else the ids in the file differ from run to run
        for name, metadata in ((PLOT, {"Software": None}), ("loss.svg", {"Date": None})):
            picture = io.BytesIO()
            figure.savefig(picture, format=name[-3:], dpi=120, metadata=metadata)
            with write_errors(folder / name):
                write_whole(OS_FILES, folder / name, picture.getvalue())
