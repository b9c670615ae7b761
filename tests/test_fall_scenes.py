"""Scenes of falls: drawn from their seeds alone, balanced, and written as files that training reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from blip2cap.options import DecodeOptions
from blip2cap.train.data.check import check
from blip2cap.train.data.read import read_data
from blip2cap.train.fall_files import NUM_TRAIN, NUM_UNSEEN, write_fall_files
from blip2cap.train.fall_scenes import QUESTION, draw_fall
from blip2cap.train.options.data import DataOptions

SIZE = (64, 48)


def test_a_scene_is_a_function_of_its_seed() -> None:
    one, other, next_one = draw_fall(3, SIZE), draw_fall(3, SIZE), draw_fall(5, SIZE)
    assert one.image.tobytes() == other.image.tobytes()
    assert one.image.tobytes() != next_one.image.tobytes()
    assert one.image.size == SIZE


def test_half_of_the_answers_are_yes_in_rooms_and_outside() -> None:
    scenes = [draw_fall(seed, (16, 12)) for seed in range(400)]
    answers = Counter((scene.answer, scene.place == "room") for scene in scenes)
    assert all(70 < answers[answer, in_room] < 130 for answer in ("yes", "no") for in_room in (True, False))
    poses = Counter(scene.pose for scene in scenes)
    assert poses["lying"] == 200
    assert 15 < poses["empty"] < 50


def test_a_lying_person_is_wide_and_low_and_a_standing_one_tall() -> None:
    for seed in range(40):
        scene = draw_fall(seed, (256, 256))
        if scene.pose == "empty" or scene.place != "room":
            continue
        # Outlines are the only dark lines in a room; what is black may be clothes too.
        rows, columns = np.nonzero(np.asarray(scene.image.convert("L")) < 60)
        height, width = np.ptp(rows), np.ptp(columns)
        assert (width > height) == (scene.pose == "lying"), seed


@pytest.mark.long
def test_the_files_are_read_without_a_complaint_and_share_no_picture(tmp_path: Path) -> None:
    write_fall_files(tmp_path)
    mixed = tuple(f"{tmp_path / name}:0.5" for name in ("general.json", "captions.json"))
    data, val = (str(tmp_path / f"{name}.json") for name in ("train", "val"))
    images = (str(tmp_path / "images"),)
    read = read_data(DataOptions(data=(data,), images=images, mix=mixed, val=(val,)), "vqa")
    report = check(read, DecodeOptions(), collate=None)
    assert (report.num_errors, report.num_warnings) == (0, 0)
    falls = [each for each in read.train.examples if each.question == QUESTION]
    assert Counter(each.texts for each in falls) == {("yes",): NUM_TRAIN / 2, ("no",): NUM_TRAIN / 2}
    assert any(each.question is None for each in read.train.examples), "captions"
    seen = {path.read_bytes() for path in (tmp_path / "images").rglob("*.jpg")}
    unseen = {path.read_bytes() for path in (tmp_path / "unseen").iterdir()}
    assert len(unseen) == NUM_UNSEEN
    assert not seen & unseen
