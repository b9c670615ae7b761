"""The suite of trainings: what it compares; and both of its programs, for a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import training
from benchmarks.measure import Facts
from benchmarks.pictures import Pictures
from benchmarks.programs import Programs
from benchmarks.suite import Suite
from benchmarks.train_loop import main


class FakePrograms(Programs):
    """Programs with given figures, of which some do not fit."""

    def __init__(self, *, estimate_mb: float = 110.0, largest: int = 100) -> None:
        super().__init__(lambda: 60.0)
        self.estimate_mb, self.largest = estimate_mb, largest
        self.asked: list[tuple[str, int]] = []

    def peer(self, module: str, **options: Any) -> Facts:
        self.asked.append((options["program"], options["batch_size"]))
        if options["batch_size"] > self.largest:
            raise ValueError("does not fit")
        if options["program"] == "plain":
            return {"step_s": 3.0, "step_cpu_s": 1.2, "peak_mb": 120.0}
        return {"step_s": 2.0, "step_cpu_s": 1.0, "peak_mb": 100.0, "estimated_peak_mb": self.estimate_mb}


def figures(folder: Path, programs: FakePrograms, section: str) -> Facts:
    suite = Suite(folder / "training.json", {}, say=lambda line: None)
    pictures = Pictures(folder, num_processes=1)
    pictures.scenes = lambda count: str(folder)  # type: ignore[method-assign]
    suite.run({section: training.SECTIONS[section]}, programs, pictures)
    facts: Facts = suite.found[section]
    return facts


@pytest.mark.parametrize(("estimate_mb", "reached"), [(110.0, True), (90.0, True), (80.0, False), (120.0, False)])
def test_programs_run_in_turns_and_the_estimate_is_held_against_the_peak(
    estimate_mb: float, reached: bool, tmp_path: Path
) -> None:
    programs = FakePrograms(estimate_mb=estimate_mb)
    found = figures(tmp_path, programs, "tiny")["figures"]
    assert programs.asked == [("ours", 16), ("plain", 16)] * 2
    assert found["times_plain_trainer"] == {"value": 1.5}
    assert found["times_plain_trainer_in_cpu_time"] == {"value": 1.2}
    assert found["estimate_of_memory_off_by"]["reached"] is reached


def test_a_large_model_is_trained_at_all_sizes_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no GPU" in figures(tmp_path, FakePrograms(), "opt_2_7b_lora")["skipped"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    programs = FakePrograms(largest=4)
    found = figures(tmp_path, programs, "opt_2_7b_lora")
    assert programs.asked == [(program, size) for size in (1, 2, 4, 8) for program in ("ours", "plain")]
    assert found["ours_8"]["error"] == "ValueError: does not fit"
    assert found["figures"]["times_plain_trainer"] == {"value": 1.5}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("program", ["ours", "plain"])
@pytest.mark.parametrize("more", [(), ("--lora", "--random-weights")])
def test_both_programs_train(
    program: str, more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Pictures(tmp_path, num_processes=1).scenes(6)
    options = ("--program", program, "--images", images, "--batch-size", "2", "--steps", "3", "--warmup", "1")
    assert main([*options, *more, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["images_per_s"] > 0
    assert facts["peak_mb"] > 0
    assert ("estimated_peak_mb" in facts) == (program == "ours")
