"""The sections of the suites ask for what there is; nothing is measured here."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cpu, gpu
from benchmarks.measure import Job
from benchmarks.pictures import Pictures
from benchmarks.programs import Programs, flags
from benchmarks.suite import Facts, SkipError, Suite
from blip2cap.bench.plain_transformers import parser as plain_parser
from blip2cap.options import ModelOptions


def suite_of(folder: Path, **values: Any) -> Suite:
    return Suite(folder / "out.json", {"machine": "mine"}, say=lambda line: None, **values)


def written(folder: Path) -> Facts:
    facts: Facts = json.loads((folder / "out.json").read_text())
    return facts


class FakePrograms(Programs):
    """Measures nothing, but looks at what it is asked."""

    def __init__(self) -> None:
        super().__init__(lambda: 60.0)
        self.jobs: list[Job] = []
        self.peers: list[argparse.Namespace] = []

    def ours(self, model: Facts, job: Facts) -> Facts:
        ModelOptions(**model)
        found = Job(**json.loads(json.dumps(job)))
        found.setup("opt")
        self.jobs.append(found)
        if found.what == "stages":
            return {"figures": {"images_per_s": {"median": 700.0}, "share_of_limit": 0.7, "overhead": 0.01}}
        if found.what == "lengths":
            return {"spread_to_mean": 1.1, "spread_to_longest": 0.7}
        rate = 500.0 / len(found.questions or [1])
        return {"images_per_s": rate, "s_per_image": 1 / rate, "seconds": 1000 / rate, "overhead": 0.02}

    def peer(self, module: str, **options: Any) -> Facts:
        found = plain_parser("", dtypes=("auto", "float32", "bfloat16")).parse_args(flags(options))
        self.peers.append(found)
        if module.endswith("vllm_opt"):
            raise SkipError("not installed")
        return {"images_per_s": 100.0 if found.batch_size < 256 else 125.0}


class FakePictures(Pictures):
    """Draws nothing."""

    def scenes(self, count: int) -> str:
        return "scenes"

    def large(self, count: int) -> str:
        return "large"


def test_every_section_on_a_cpu_asks_for_what_there_is(tmp_path: Path) -> None:
    suite, programs = suite_of(tmp_path), FakePrograms()
    measured = cpu.Cpu(suite, programs, FakePictures(tmp_path))
    sections = {name: partial(section, measured) for name, section in cpu.SECTIONS.items() if name != "decode"}
    assert suite.run(sections) == 0
    figures = {name: facts["figures"] for name, facts in written(tmp_path)["sections"].items()}
    assert figures["tiny"]["times_the_plain_script"] == {"value": 5.0, "at_least": 3, "reached": True}
    assert figures["questions"]["times_one_by_one"]["value"] == 1.0  # the fake knows no better
    assert {"bfloat16_s_per_image", "int8_times_float32_script", "overhead", "spread_lengths_to_mean_length"} <= set(
        figures["opt-2.7b"]
    )
    assert {peer.batch_size for peer in programs.peers if not peer.random_weights} == {1, 16, 64, 128}
    assert all(peer.min_new_tokens == peer.max_new_tokens == 12 for peer in programs.peers if peer.random_weights)


def test_every_section_on_a_gpu_asks_for_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, programs = suite_of(tmp_path), FakePrograms()
    measured = gpu.Gpu(suite, programs, FakePictures(tmp_path))
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert suite.run({name: partial(section, measured) for name, section in gpu.SECTIONS.items()}) == 0
    sections = written(tmp_path)["sections"]
    assert sections["fp8"]["skipped"] == "torchao is not installed"
    assert sections["peers"]["vllm"] == {"skipped": "not installed"}
    assert sections["peers"]["figures"] == {
        "times_the_plain_script": {"value": 4.0, "at_least": 4, "reached": True},
        "times_the_tuned_script": {"value": 4.0, "at_least": 1.5, "reached": True},
    }
    assert sections["opt-2.7b"]["figures"]["images_per_s"]["reached"]
    assert set(sections["ladder"]["figures"]) == set(gpu.LADDER)
    assert {job.num_images for job in programs.jobs} <= {256, 1024, 2048, 4096}


def test_without_a_gpu_nothing_is_measured_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert "sees no GPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
