"""`python -m blip2cap.train tiny FOLDER` trains the embedded model; `measure MODEL` measures the accuracy of one."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer

from blip2cap.models.blip2.load import load
from blip2cap.models.checkpoint import find
from blip2cap.options import ModelOptions
from blip2cap.tiny.scenes import VALIDATION_SEEDS
from blip2cap.train.accuracy import measure
from blip2cap.train.loop import TrainOptions, train

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_MEASURED_FROM = VALIDATION_SEEDS.start + 10_000
"""First of the seeds that no evaluation during training uses."""


@app.command("tiny")
def tiny_command(
    folder: Annotated[Path, typer.Argument(help="Folder for the checkpoint and the finished model.")],
    num_steps: Annotated[int, typer.Option(min=1)] = TrainOptions().num_steps,
) -> None:
    """Train the tiny model in FOLDER, or resume from the checkpoint there."""
    print(train(folder, TrainOptions(num_steps=num_steps)))


@app.command("measure")
def measure_command(
    model: Annotated[str, typer.Argument(help="`tiny` or a folder.")],
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    num_scenes: Annotated[int, typer.Option(min=1)] = 1_000,
    num_questions: Annotated[int, typer.Option(min=1)] = 2_000,
) -> None:
    """Measure captions and answers on unseen scenes, with the weights as they are stored."""
    options = ModelOptions(name=model, device="cpu")
    checkpoint = find(options)
    accuracy = measure(
        load(checkpoint, options), num_scenes=num_scenes, num_questions=num_questions, first_seed=_MEASURED_FROM
    )
    weights = checkpoint.folder / "model.safetensors"
    result = {
        "command": f"python -m blip2cap.train measure {model}",
        "seeds": [_MEASURED_FROM, _MEASURED_FROM + num_scenes - 1],
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **accuracy.as_dict(),
    }
    text = json.dumps(result, indent=2) + "\n"
    sys.stdout.write(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app()
