"""The unattended suites of the folder benchmarks: deadlines, figures, options, the file; nothing is measured here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cpu, gpu
from benchmarks.measure import Facts, Job
from benchmarks.pictures import Pictures
from benchmarks.programs import Programs
from benchmarks.suite import Section, Suite, about, main
from blip2cap.bench.peer import parser
from blip2cap.bench.programs import SkipError, flags
from blip2cap.options import ModelOptions


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakePrograms(Programs):
    """Programs that record their jobs and measure nothing."""

    def __init__(self) -> None:
        super().__init__(lambda: 60.0)
        self.jobs: list[Job] = []
        self.peers: list[argparse.Namespace] = []

    def ours(self, model: ModelOptions, job: Job) -> Facts:
        self.jobs.append(job)
        if job.what == "stages":
            return {"figures": {"images_per_s": {"median": 700.0}, "share_of_limit": 0.7, "overhead": 0.01}}
        if job.what == "profiles":
            return {part: {"ms": 300.0} for part in ("vision_batch", "step", "capture", "replay")}
        if job.what == "lengths":
            return {"spread_to_mean": 1.1, "spread_to_longest": 0.7}
        rate = 500.0 / len(job.questions or [1])
        return {"images_per_s": rate, "s_per_image": 1 / rate, "seconds": 1000 / rate, "overhead": 0.02}

    def peer(self, module: str, **options: Any) -> Facts:
        found = parser("", dtypes=("auto", "float32", "bfloat16")).parse_args(flags(options))
        self.peers.append(found)
        if module.endswith("vllm_opt"):
            raise SkipError("not installed")
        return {"images_per_s": 100.0 if found.batch_size < 256 else 125.0}


class FakePictures(Pictures):
    """Pictures that are not drawn."""

    def scenes(self, count: int) -> str:
        return "scenes"

    def large(self, count: int) -> str:
        return "large"


class Run:
    """A suite whose programs are fakes."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.programs = folder, FakePrograms()
        self.suite = Suite(folder / "out.json", {"machine": "mine"}, say=lambda line: None, **settings)

    def __call__(self, sections: Mapping[str, Callable[[Section], None]]) -> int:
        return self.suite.run(sections, self.programs, FakePictures(self.folder))

    @property
    def written(self) -> Facts:
        facts: Facts = json.loads((self.folder / "out.json").read_text())
        return facts


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_section_that_fails_keeps_what_it_found_and_the_next_one_runs(run: Run) -> None:
    def bad(section: Section) -> None:
        section.facts["before"] = 1
        raise RuntimeError("no luck\nat all")

    def good(section: Section) -> None:
        assert run.written["sections"]["bad"]["before"] == 1, "the file is written after each section"
        section.facts["found"] = 2

    assert run({"bad": bad, "good": good}) == 1
    assert run.written["machine"] == "mine"
    sections = run.written["sections"]
    assert sections["bad"] == {"before": 1, "error": "RuntimeError: no luck", "seconds": sections["bad"]["seconds"]}
    assert sections["good"]["found"] == 2
    assert [path.name for path in run.folder.iterdir()] == ["out.json"]


def test_nothing_starts_after_the_deadline(tmp_path: Path) -> None:
    clock = Clock()
    run = Run(tmp_path, clock=clock, minutes=2)

    def long(section: Section) -> None:
        section.facts["left_s"] = section.suite.left_s()
        section.attempt("first", lambda: {"a": 1})
        clock.now = 121
        assert section.attempt("second", lambda: {"a": 2}) == {}

    def late(section: Section) -> None:
        section.facts["started"] = True

    assert run({"long": long, "late": late}) == 0
    assert run.written["sections"]["long"] == {
        "seconds": 121.0,
        "left_s": 140.0,
        "first": {"a": 1},
        "second": {"skipped": "the 2 minutes are over"},
    }
    assert run.written["sections"]["late"] == {"seconds": 0.0, "skipped": "the 2 minutes are over"}


def test_parts_of_a_section_fail_alone(run: Run) -> None:
    def fail(error: Exception) -> Facts:
        raise error

    def section(section: Section) -> None:
        assert section.attempt("bad", fail, ValueError("no")) == {}
        assert section.attempt("absent", fail, SkipError("not here")) == {}
        assert section.attempt("good", lambda: {"a": 3}) == {"a": 3}

    assert run({"section": section}) == 1
    facts = run.written["sections"]["section"]
    assert facts["bad"] == {"error": "ValueError: no"}
    assert facts["absent"] == {"skipped": "not here"}
    assert facts["good"] == {"a": 3}


def test_only_the_sections_asked_for_run(tmp_path: Path) -> None:
    run = Run(tmp_path, only=["a", "c"])
    assert run(dict.fromkeys(("a", "b", "c"), lambda section: None)) == 0
    assert list(run.written["sections"]) == ["a", "c"]


def test_options_of_a_suite_are_checked_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []
    sections = {name: lambda section: ran.append(1) for name in ("a", "b")}
    out = str(tmp_path / "out.json")
    for argv in (["--out", out, "--only", "c"], ["--out", str(tmp_path / "none" / "out.json")], []):
        with pytest.raises(SystemExit):
            main("", sections, argv)
    assert "no such folder" in capsys.readouterr().err
    assert ran == []
    assert main("", sections, ["--out", out, "--only", "a", "--only", "b"]) == 0
    assert ran == [1, 1]


def test_figures_stand_beside_their_targets(run: Run) -> None:
    section = Section(run.suite, run.programs, FakePictures(run.folder))
    section.judge("rate", 3.14159, at_least=3)
    section.judge("time", 2.0, at_most=1.5)
    section.judge("unknown", None, at_least=1)
    assert section.facts["figures"] == {
        "rate": {"value": 3.142, "at_least": 3, "reached": True},
        "time": {"value": 2.0, "at_most": 1.5, "reached": False},
    }


def test_the_command_that_a_result_names_is_one_that_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/cpu.py", "--out", "x.json"])
    facts = about("cpu", None)
    assert facts["command"] == "python benchmarks/cpu.py --out x.json"
    assert facts["machine"]["versions"]["torch"] == torch.__version__


def test_every_section_on_a_cpu_asks_for_what_there_is(run: Run) -> None:
    assert run({name: section for name, section in cpu.SECTIONS.items() if name != "decode"}) == 0
    figures = {name: facts["figures"] for name, facts in run.written["sections"].items()}
    assert figures["tiny"]["times_the_plain_script"] == {"value": 5.0, "at_least": 3, "reached": True}
    assert figures["questions"]["times_one_by_one"]["value"] == 1.0  # the fake knows no better
    assert {"bfloat16_s_per_image", "int8_times_float32_script", "overhead", "spread_lengths_to_mean_length"} <= set(
        figures["opt-2.7b"]
    )
    peers = run.programs.peers
    assert {peer.batch_size for peer in peers if not peer.random_weights} == {1, 16, 64, 128}
    assert all(peer.min_new_tokens == peer.max_new_tokens == 12 for peer in peers if peer.random_weights)


def test_the_best_batch_size_of_the_plain_script_is_taken_for_the_rest() -> None:
    parts: Facts = {"plain_batch_16": {"images_per_s": 2.0}, "plain_batch_128": {"images_per_s": 3.0}}
    assert cpu.best_batch_size(parts) == 128
    assert cpu.best_batch_size({"plain_batch_16": {"error": "no"}}) == 64


def test_every_section_on_a_gpu_asks_for_what_there_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert run(gpu.SECTIONS) == 0
    sections = run.written["sections"]
    assert sections["tests"]["skipped"] == "pytest is not installed"
    assert sections["profiles"]["figures"]["capture_ms"] == {"value": 300.0}
    assert "at_least" not in sections["fp8"]["figures"]["images_per_s"]  # it saves memory, not time
    assert sections["peers"]["vllm"] == {"skipped": "not installed"}
    assert sections["peers"]["figures"] == {
        "times_the_plain_script": {"value": 4.0, "at_least": 4, "reached": True},
        "times_the_tuned_script": {"value": 4.0, "at_least": 1.5, "reached": True},
    }
    assert sections["opt-2.7b"]["figures"]["images_per_s"]["reached"]
    assert set(sections["ladder"]["figures"]) == set(gpu.LADDER)
    assert {job.num_images for job in run.programs.jobs} <= {1, 256, 1024, 2048, 4096}


def test_the_suite_names_every_file_that_has_tests_for_a_gpu() -> None:
    folder = Path(__file__).parent
    # In halves, so that this file is not one of them.
    found = {f"tests/{path.name}" for path in folder.glob("test_*.py") if "pytest.mark." + "gpu" in path.read_text()}
    assert found == set(gpu.TESTS)


@pytest.mark.long
def test_tests_for_a_gpu_run_without_the_settings_of_the_project(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here they are all skipped, or left out."""
    monkeypatch.setattr(gpu, "TESTS", ("tests/test_model_device.py",))
    assert run({"tests": gpu.tests}) == 1
    assert "pytest ended with 5" in run.written["sections"]["tests"]["error"]
    assert "deselected" in run.written["sections"]["tests"]["summary"]


def test_what_was_measured_is_in_the_file_before_the_section_ends(run: Run) -> None:
    seen: list[Facts] = []

    def section(section: Section) -> None:
        section.ours("first", gpu.OPT, Job(images="scenes"))
        seen.append(run.written["sections"]["only"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run({"only": section})
    assert set(seen[0]) == set(run.written["sections"]["only"]) == {"first"}


def test_without_a_gpu_nothing_is_measured_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(gpu.__doc__, gpu.SECTIONS, ["--out", str(tmp_path / "gpu.json")], device="cuda") == 2
    assert "sees no GPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
