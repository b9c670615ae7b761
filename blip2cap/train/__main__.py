"""`python -m blip2cap.train tiny FOLDER` trains a model of the package; `measure MODEL` measures one."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from transformers import AutoTokenizer, Blip2ForImageTextRetrieval

from blip2cap.models.blip2.load import load
from blip2cap.models.checkpoint import TINY, find
from blip2cap.options import ModelOptions
from blip2cap.tiny.scenes import VALIDATION_SEEDS
from blip2cap.train import tiny_itm_recipe, tiny_recipe
from blip2cap.train.drawn import Lines
from blip2cap.train.run import train
from blip2cap.train.tiny_accuracy import measure
from blip2cap.train.tiny_itm_accuracy import Scores, measure_matches

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_MEASURED_FROM = VALIDATION_SEEDS.start + 10_000
"""First of the seeds that no evaluation during training uses."""

Folder = Annotated[Path, typer.Argument(help="Folder for checkpoints and the finished model.")]


NumSteps = Annotated[int | None, typer.Option(min=1, help="Shorter than the recipe, to try something.")]


@app.command("tiny")
def tiny_command(folder: Folder, num_steps: NumSteps = None) -> None:
    """Train the tiny captioner in FOLDER, or resume there."""
    job = tiny_recipe.job(folder, num_steps=num_steps)
    train(job, listener=Lines(), stopped=lambda: False, make=tiny_recipe.prepare_tiny)


@app.command("tiny-itm")
def tiny_itm_command(folder: Folder, num_steps: NumSteps = None) -> None:
    """Train the tiny matching model in FOLDER, or resume there; FOLDER.features may be deleted."""
    job = tiny_itm_recipe.job(folder, num_steps=num_steps)
    train(job, listener=Lines(), stopped=lambda: False, make=tiny_itm_recipe.prepare_tiny_itm)


@app.command("measure")
def measure_command(
    model: Annotated[str, typer.Argument(help="`tiny`, `tiny-itm` or a folder.")],
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    num_scenes: Annotated[int, typer.Option(min=1, help="For captioners.")] = 1_000,
    num_questions: Annotated[int, typer.Option(min=1, help="For captioners.")] = 2_000,
    num_sets: Annotated[int, typer.Option(min=1, help="For matching models; sets of 100 scenes.")] = 10,
) -> None:
    """Measure a model on unseen scenes, with the weights as they are stored."""
    folder = {"tiny": TINY, "tiny-itm": TINY.parent / "tiny_itm"}.get(model, Path(model))
    classes = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    if classes == [Blip2ForImageTextRetrieval.__name__]:
        figures = _measure_matches(folder, num_sets)
    else:
        figures = _measure_captions(model, num_scenes, num_questions)
    result = {
        "command": f"python -m blip2cap.train measure {model}",
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **figures,
    }
    text = json.dumps(result, indent=2) + "\n"
    sys.stdout.write(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


def _measure_captions(model: str, num_scenes: int, num_questions: int) -> dict[str, Any]:
    options = ModelOptions(name=model, device="cpu")
    captioner = load(find(options), options)
    accuracy = measure(captioner, num_scenes=num_scenes, num_questions=num_questions, first_seed=_MEASURED_FROM)
    return {"seeds": [_MEASURED_FROM, _MEASURED_FROM + num_scenes - 1], **accuracy.as_dict()}


def _measure_matches(folder: Path, num_sets: int) -> dict[str, Any]:
    model = Blip2ForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
    scores = Scores(model, AutoTokenizer.from_pretrained(folder))
    return measure_matches(scores, num_sets=num_sets, first_seed=_MEASURED_FROM).as_dict()


if __name__ == "__main__":
    app()
