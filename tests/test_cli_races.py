"""Two runs that start on one output at the same moment."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import names_below, read_rows
from tests.zygote import Stub, Zygote

NUM_RACES = 50


def lead_elsewhere(here: Path, race: int) -> tuple[str, str]:
    """Return two names of one output, which exists in every second race."""
    (here / f"{race}").mkdir()
    (here / f"{race}" / "sub").symlink_to(".")
    first, second = f"{race}/captions.jsonl", [f"{race}/sub/captions.jsonl", f"{race}/link.jsonl", f"{race}/hard.jsonl"]
    if race % 3 == 2 or race % 2:
        (here / first).touch()
    if race % 3 == 1:
        (here / second[1]).symlink_to("captions.jsonl")
    elif race % 3 == 2:
        os.link(here / first, here / second[2])
    return first, second[race % 3]


@pytest.mark.long
def test_of_two_runs_that_start_at_once_on_one_output_one_runs(zygote: Zygote, here: Path) -> None:
    images = here / "images"
    images.mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 0, 7)).save(images / f"{number}.png")
    for race in range(NUM_RACES):
        names = lead_elsewhere(here, race)
        stub = Stub(gate=str(here / f"{race}" / "gate"))
        runs = [
            zygote.start("caption", images, "-m", "tiny", "-o", name, cwd=here, stub=stub, said=f"{race}/said{number}")
            for number, name in enumerate(names if race % 4 < 2 else reversed(names))
        ]
        while not any(map(zygote.has_ended, runs)):
            time.sleep(0.001)
        (here / f"{race}" / "gate").touch()  # the other one may go on
        codes = [zygote.wait(run) for run in runs]
        assert sorted(codes) == [0, 5], f"race {race}: {codes}"
        refusal = (here / f"{race}" / f"said{codes.index(5)}").read_text()
        assert "is being written by another blip2cap run. Wait for it, or use another --out." in refusal
        assert "Traceback" not in refusal
        assert [row["file_name"] for row in read_rows(here / names[0])] == names_below(images)
