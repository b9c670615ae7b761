"""The unattended suites of the folder benchmarks: deadlines, figures, options, the file."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.suite import Facts, Section, SkipError, Suite, arguments, judge


class Clock:
    """Stands still until it is told otherwise."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def suite_of(folder: Path, **values: Any) -> Suite:
    return Suite(folder / "out.json", {"machine": "mine"}, say=lambda line: None, **values)


def written(folder: Path) -> Facts:
    facts: Facts = json.loads((folder / "out.json").read_text())
    return facts


def test_a_section_that_fails_keeps_what_it_found_and_the_next_one_runs(tmp_path: Path) -> None:
    def bad(facts: Facts) -> None:
        facts["before"] = 1
        raise RuntimeError("no luck\nat all")

    def good(facts: Facts) -> None:
        assert written(tmp_path)["sections"]["bad"]["before"] == 1, "the file is written after each section"
        facts["found"] = 2

    assert suite_of(tmp_path).run({"bad": bad, "good": good}) == 1
    result = written(tmp_path)
    assert result["machine"] == "mine"
    assert result["sections"]["bad"] == {"seconds": 0.0, "before": 1, "error": "RuntimeError: no luck"} | {
        "seconds": result["sections"]["bad"]["seconds"]
    }
    assert result["sections"]["good"]["found"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_nothing_begins_after_the_deadline(tmp_path: Path) -> None:
    clock = Clock()
    suite = suite_of(tmp_path, clock=clock, minutes=2)

    def long(facts: Facts) -> None:
        facts["left_s"] = suite.left_s()
        suite.attempt(facts, "first", lambda: 1)
        clock.now = 121
        assert suite.attempt(facts, "second", lambda: 2) is None

    def late(facts: Facts) -> None:
        facts["begun"] = True

    assert suite.run({"long": long, "late": late}) == 0
    sections = written(tmp_path)["sections"]
    assert sections["long"] == {
        "seconds": 121.0,
        "left_s": 140.0,
        "first": 1,
        "second": {"skipped": "the 2 minutes are over"},
    }
    assert sections["late"] == {"seconds": 0.0, "skipped": "the 2 minutes are over"}


def test_parts_of_a_section_fail_alone(tmp_path: Path) -> None:
    suite = suite_of(tmp_path)

    def fail(error: Exception) -> None:
        raise error

    def section(facts: Facts) -> None:
        assert suite.attempt(facts, "bad", partial(fail, ValueError("no"))) is None
        assert suite.attempt(facts, "absent", partial(fail, SkipError("not here"))) is None
        assert suite.attempt(facts, "good", lambda: 3) == 3

    assert suite.run({"section": section}) == 1
    facts = written(tmp_path)["sections"]["section"]
    assert facts["bad"] == {"error": "ValueError: no"}
    assert facts["absent"] == {"skipped": "not here"}
    assert facts["good"] == 3


def test_only_the_sections_asked_for_run(tmp_path: Path) -> None:
    def section(facts: Facts) -> None:
        facts["ran"] = True

    sections: dict[str, Section] = dict.fromkeys(("a", "b", "c"), section)
    assert suite_of(tmp_path, only=["a", "c"]).run(sections) == 0
    assert list(written(tmp_path)["sections"]) == ["a", "c"]


def test_options_of_a_suite_are_checked_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.json")
    options = arguments("", ["a", "b"], ["--out", out, "--only", "a", "--only", "b"])
    assert (options.only, options.minutes) == (["a", "b"], 8.5)
    for argv in (["--out", out, "--only", "c"], ["--out", str(tmp_path / "none" / "out.json")], []):
        with pytest.raises(SystemExit):
            arguments("", ["a", "b"], argv)
    assert "no such folder" in capsys.readouterr().err


def test_figures_stand_beside_what_they_should_reach() -> None:
    facts: Facts = {}
    judge(facts, "rate", 3.14159, at_least=3)
    judge(facts, "time", 2.0, at_most=1.5)
    judge(facts, "unknown", None, at_least=1)
    assert facts["figures"] == {
        "rate": {"value": 3.142, "at_least": 3, "reached": True},
        "time": {"value": 2.0, "at_most": 1.5, "reached": False},
    }


def test_the_command_that_a_result_names_is_one_that_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.suite import about

    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/cpu.py", "--out", "x.json"])
    facts = about("cpu", None)
    assert facts["command"] == "python benchmarks/cpu.py --out x.json"
    assert facts["machine"]["versions"]["torch"] == torch.__version__
