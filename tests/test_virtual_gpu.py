"""A run on a GPU, modelled: how often steps are captured, how many shapes occur, that the device hardly ever waits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.virtual_h200 import COSTS, RUNS, VirtualModel, lengths_of_texts, one_run
from blip2cap.generate_options import GenerateOptions

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "virtual_h200.json"


@pytest.mark.parametrize(("num_beams", "num_images"), [(1, 1024), (5, 512)])
def test_a_second_run_captures_nothing_and_few_shapes_occur_in_any(num_beams: int, num_images: int) -> None:
    options = GenerateOptions(num_beams=num_beams)
    model, lengths = VirtualModel(options), lengths_of_texts(num_images, spread=True)
    first, second = (one_run(model, options, lengths, COSTS) for _ in range(2))
    assert (first["captures"], second["captures"]) == (4, 0)
    assert second["images_at_once"] == 128
    assert second["texts_at_once"] * num_beams >= 512
    assert max(sum(figures["shapes"].values()) for figures in (first, second)) <= 8
    assert second["device_busy"] > 0.97


def test_the_committed_figures_are_called_a_model_and_reach_what_was_asked_for() -> None:
    results = json.loads(RESULTS.read_text())
    assert results["what"].startswith("A MODEL, NOT A MEASUREMENT")
    assert set(results["after"]) == set(RUNS)
    greedy = {name: runs["first run"]["images_per_s"] for name, runs in results["after"].items() if "beams" not in name}
    assert greedy["bf16, 4,096 images"] >= 600
    assert greedy["bf16, 20,000 images"] >= 640
