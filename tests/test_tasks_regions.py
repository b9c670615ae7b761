"""Regions that Florence-2 writes as places in its text become a column, in JSONL and in Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoProcessor

from blip2cap.column_types import REGIONS
from blip2cap.models.vlm.model import Vlm
from blip2cap.records import Generated
from blip2cap.tasks.regions import find_regions
from tests.commands import invoke, read_rows

TWO_CARS = "car<loc_52><loc_334><loc_932><loc_774><loc_0><loc_1><loc_2><loc_3>"
WHEEL = "wheel of it<loc_9><loc_8><loc_999><loc_998>"
NO_REGIONS = ("car", [{"label": "car"}], [{"label": 1, "box": [1, 2, 3, 4]}], [{"label": "", "box": [1, 2]}], [3])


def test_boxes_are_those_of_the_processor(vlm_checkpoints: Callable[[str], Path]) -> None:
    processor = AutoProcessor.from_pretrained(vlm_checkpoints("florence2"))
    # As in the files of the published checkpoints.
    processor.post_processor.parse_task_config = {"description_with_bboxes": {}}
    theirs = processor.post_process_generation(TWO_CARS + WHEEL, task="<OD>", image_size=(640, 480))["<OD>"]
    regions = find_regions(TWO_CARS + WHEEL, "<OD>", width=640, height=480)
    assert [each["label"] for each in regions] == theirs["labels"] == ["car", "car", "wheel of it"]
    assert [[int(value) for value in each["box"]] for each in regions] == theirs["bboxes"]


def test_polygons_make_no_boxes(vlm_checkpoints: Callable[[str], Path]) -> None:
    cat = "cat<poly>" + "".join(f"<loc_{number}>" for number in range(1, 13)) + "</poly><poly><loc_1><loc_2></poly>"
    assert find_regions(cat, "<OPEN_VOCABULARY_DETECTION>", width=10, height=10) == ()
    assert find_regions(cat + WHEEL + cat[:20], "<OPEN_VOCABULARY_DETECTION>", width=10, height=10) == find_regions(
        WHEEL, "<OD>", width=10, height=10
    )


def test_boxes_without_labels_and_texts_with_four_corners() -> None:
    assert find_regions("<loc_0><loc_0><loc_499><loc_999>", "<REGION_PROPOSAL>", width=1000, height=100) == (
        {"label": "", "box": [0.5, 0.05, 499.5, 99.95]},
    )
    corners = "x < 5<loc_10><loc_20><loc_30><loc_22><loc_31><loc_40><loc_11><loc_38>"
    assert find_regions(corners, "<OCR_WITH_REGION>", width=1000, height=1000) == (
        {"label": "x < 5", "box": [10.5, 20.5, 31.5, 40.5]},
    )


@pytest.mark.parametrize("text", ["", "a car on a street", "car<loc_1><loc_2><loc_3>", "<loc_1>"])
def test_a_text_without_whole_boxes_has_no_regions(text: str) -> None:
    assert find_regions(text, "<OD>", width=10, height=10) == ()


@pytest.mark.parametrize("value", NO_REGIONS)
def test_values_that_are_no_regions_are_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        REGIONS.from_json(value)


def test_a_run_with_boxes_has_a_column_of_them(
    scenes: Path, here: Path, vlm_checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Generated(text="sky<loc_0><loc_0><loc_999><loc_499>", num_tokens=5, finish_reason="stop")
    monkeypatch.setattr(Vlm, "read_text", lambda model, ids: written)
    (here / "broken.png").write_bytes(b"no image")
    command = ("caption", scenes, "broken.png", "-m", vlm_checkpoints("florence2"), "--max-new-tokens", "4")
    for out in ("rows.jsonl", "rows.parquet"):
        assert invoke(*command, "--limit", "3", "-o", out, "--prompt", "<OD>").exit_code == 0
        assert invoke(*command, "-o", out, "--prompt", "<OD>").exit_code == 3
    rows = read_rows(here / "rows.jsonl")
    sky = [{"label": "sky", "box": [0.03, 0.02, 63.97, 23.98]}]
    assert [row["regions"] for row in rows] == [sky] * 5 + [[]]
    assert pq.read_table(here / "rows.parquet").to_pylist() == rows
    assert json.loads(invoke("status", "rows.jsonl", "--json").stdout)["settings"]["regions"] is True
    assert invoke("export", "rows.jsonl", "--to", "parquet", "-o", "again.parquet").exit_code == 0
    assert pq.read_table(here / "again.parquet").to_pylist() == rows[:5]
    assert invoke(*command, "-o", "plain.jsonl").exit_code == 3
    assert "regions" not in read_rows(here / "plain.jsonl")[0]
