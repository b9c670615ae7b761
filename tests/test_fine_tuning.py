"""The worked example of docs/fine-tuning.md, typed word for word: the model learns, and forgets nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from blip2cap.models.blip2.load import load
from blip2cap.models.checkpoint import find
from blip2cap.options import ModelOptions
from blip2cap.tiny.scenes import VALIDATION_SEEDS
from blip2cap.train.tiny_accuracy import Accuracy, measure
from tests.doc_blocks import ROOT

PAGE = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
SAME_EVERYWHERE = ("head", "blip2cap check-data")
"""Commands that print the same on any machine; losses and scores differ in their last digits."""


def type_command(command: str, folder: Path) -> str:
    """Run a command of the page in a shell; return what it prints. It must end with 0."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "BLIP2CAP_DEVICE": "cpu"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr[-2000:])
    return done.stdout + done.stderr


def accuracy_of(name: str) -> Accuracy:
    options = ModelOptions(name=name, device="cpu", dtype="float32")
    return measure(
        load(find(options), options), num_scenes=200, num_questions=600, first_seed=VALIDATION_SEEDS.start + 20_000
    )


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_hundred_pictures_teach_a_question_and_nothing_is_forgotten(tmp_path: Path) -> None:
    lines = [line for block in BLOCKS for line in block.splitlines()]
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    assert len(commands) == 7
    for command in commands:
        printed = type_command(command, tmp_path)
        if command.startswith(SAME_EVERYWHERE):
            assert f"$ {command}\n{printed}" in PAGE
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    truth = {row["image"]: row["answer"] for row in json.loads((tmp_path / "fall" / "unseen.json").read_text())}
    for answer in ("yes", "no"):
        right = [row["answer"] == answer for row in answers if truth[row["file_name"]] == [answer]]
        assert len(right) == 100
        assert sum(right) >= 95, answer
    before, after = accuracy_of("tiny"), accuracy_of(str(tmp_path / "fall-run"))
    assert after.captions_exact >= before.captions_exact - 0.02
    assert after.prompted_captions_exact >= before.prompted_captions_exact - 0.02
    assert after.answers_exact >= before.answers_exact - 0.02
    with Image.open(tmp_path / "fall-run" / "loss.png") as plot:
        assert min(plot.size) > 200
