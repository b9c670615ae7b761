"""A run that is killed many times, at any moment, and resumed each time."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import num_lines, read_rows
from tests.zygote import Stub, Zygote

NUM_IMAGES, NUM_KILLS, BATCH_SIZE = 2000, 200, 4
PACE_S = 0.002
"""Approximate time of a batch."""
RUN = ("caption", "images", "--model", "tiny", "--batch-size", str(BATCH_SIZE), "--threads", "1")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that are all different. Not to be changed."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(folder / f"{number:04}.png")
    return folder


def num_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("most_steps", "most_redone"),
    [
        (1, BATCH_SIZE),  # texts of equal length: one batch
        (16, 4 * BATCH_SIZE + BATCH_SIZE - 1),  # what is done waits for a longer text before it
    ],
)
def test_two_hundred_kills_leave_one_row_each_and_redo_little(
    zygote: Zygote, images: Path, tmp_path: Path, most_steps: int, most_redone: int
) -> None:
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    for folder in (quiet, killed):
        folder.mkdir()
        (folder / "images").symlink_to(images)
    assert zygote.run(*RUN, cwd=quiet, stub=Stub(most_steps=most_steps)) == 0
    undisturbed = (quiet / "captions.jsonl").read_bytes()
    assert len(undisturbed.splitlines()) == NUM_IMAGES

    rng, out, log = random.Random(most_steps), killed / "captions.jsonl", killed / "log"
    step_s = PACE_S / most_steps
    stub = Stub(log=str(log), encode_s=PACE_S / 2, step_s=step_s, most_steps=most_steps)
    num_killed, num_redone = 0, list[int]()
    for kill in range(NUM_KILLS):
        before = num_bytes(out)
        rows_before, encoded_before = num_lines(out), num_lines(log)
        process = zygote.start(*RUN, cwd=killed, stub=stub)
        if kill % 4 == 0:  # while it starts, cuts a torn tail, writes the manifest
            time.sleep(rng.uniform(0, 0.08))
        else:
            while num_bytes(out) <= before and not zygote.has_ended(process):
                time.sleep(0.0005)
            left = (NUM_IMAGES - rows_before) / BATCH_SIZE / (NUM_KILLS - kill)
            time.sleep(rng.uniform(0, max(0, left - 1) * 2 * PACE_S))
        os.kill(process, signal.SIGKILL)
        code = zygote.wait(process)
        assert code in (-signal.SIGKILL, 0), (killed / "said").read_text()
        num_killed += code != 0
        # What was encoded and has no row is encoded again by the next run.
        num_redone.append((num_lines(log) - encoded_before) - (num_lines(out) - rows_before))
    assert num_killed > NUM_KILLS // 2, "on a machine that is busy with other things a run may be done before its kill"
    assert zygote.run(*RUN, cwd=killed, stub=stub) == 0, (killed / "said").read_text()
    assert out.read_bytes() == undisturbed
    assert len({row["file_name"] for row in read_rows(out)}) == NUM_IMAGES
    assert max(num_redone) <= most_redone
    assert max(num_redone) > 0
