"""Files of docs/fine-tuning.md: pictures of falls, and questions about them in the JSON that LAVIS reads.

`python -m blip2cap.train.fall_files FOLDER` writes into FOLDER:

- train.json: 200 pictures, each with the question whether someone is lying down; val.json: some others, and general
  questions; their pictures are in images/
- general.json, captions.json: questions about scenes that the tiny model knows, and their captions, to mix in
- unseen.json, with its pictures in unseen/: 200 others, to measure on
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from PIL import Image

from blip2cap.tiny.scenes import TRAINING_SEEDS, draw
from blip2cap.train.fall_scenes import QUESTION, draw_fall

NUM_TRAIN = 200
NUM_UNSEEN = 200
_NUM_VAL = 40
_NUM_GENERAL = 400
"""Pictures of general scenes, with about seven questions each."""
_FIRST_GENERAL = 500_000_000
"""Index of the seed of the first general scene; the tiny model was trained on the first million."""
_SIZE = (320, 240)


def write_fall_files(folder: Path) -> None:
    """Write pictures and questions; equal calls write equal files."""
    images = folder / "images"
    entries = {
        "train": [_fall(images, f"train/{seed:05}.jpg", seed) for seed in range(NUM_TRAIN)],
        "val": [_fall(images, f"val/{seed:05}.jpg", seed) for seed in range(10_000, 10_000 + _NUM_VAL)],
        "unseen": [_fall(folder / "unseen", f"{seed:05}.jpg", seed) for seed in range(20_000, 20_000 + NUM_UNSEEN)],
    }
    general = [_general(images, index) for index in range(_NUM_GENERAL + _NUM_VAL)]
    entries["general"] = [question for questions, _ in general[:_NUM_GENERAL] for question in questions]
    entries["captions"] = [caption for _, caption in general[:_NUM_GENERAL]]
    for index, (questions, _) in enumerate(general[_NUM_GENERAL:]):
        entries["val"].append(questions[index % len(questions)])
    for name, rows in entries.items():
        lines = (json.dumps({"instance_id": number, **row}) for number, row in enumerate(rows))
        (folder / f"{name}.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def _fall(images: Path, name: str, seed: int) -> dict[str, Any]:
    scene = draw_fall(seed, _SIZE)
    _save(scene.image, images / name)
    return {"image": name, "text_input": QUESTION, "answer": [scene.answer]}


def _general(images: Path, index: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Draw a scene that the tiny model knows; return its questions and its caption."""
    scene = draw(TRAINING_SEEDS[_FIRST_GENERAL + index], _SIZE)
    name = f"general/{index:05}.jpg"
    _save(scene.image, images / name)
    questions = [{"image": name, "text_input": each.text, "answer": [each.answer]} for each in scene.questions]
    return questions, {"image": name, "caption": scene.caption}


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)


if __name__ == "__main__":
    typer.run(write_fall_files)
