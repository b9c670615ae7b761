"""The benchmark of a million files, with a few of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import million
from benchmarks.measure import Facts
from benchmarks.pictures import Pictures
from benchmarks.programs import Programs
from benchmarks.suite import Section, Suite, main
from blip2cap.bench.programs import ProgramError


def measured(folder: Path, run: Callable[[Section], None]) -> Facts:
    suite = Suite(folder / "million.json", {}, say=lambda line: None)
    section = Section(suite, Programs(suite.left_s), Pictures(folder / "files"))
    (folder / "files").mkdir()
    run(section)
    return section.facts


@pytest.mark.long
def test_files_are_created_done_and_removed(tmp_path: Path) -> None:
    facts = measured(tmp_path, million.first(7, few=20, many=200))
    assert [facts[name]["files"] for name in ("few", "many")] == [20, 200]
    assert [facts[name]["rows_written"] for name in ("few", "many")] == [20, 200]
    assert [figure["at_most"] for figure in facts["figures"].values()] == [5, 100]
    assert facts["many"]["peak_mb"] > 50
    assert facts["many"]["cpu_s"] > 0
    assert list((tmp_path / "files").iterdir()) == []


@pytest.mark.long
def test_files_with_captions_are_found_done_and_removed(tmp_path: Path) -> None:
    facts = measured(tmp_path, million.again(7, many=200))
    assert (facts["again_0"]["files"], facts["again_0"]["rows_written"]) == (200, 0)
    assert [figure["at_most"] for figure in facts["figures"].values()] == [10]
    assert "first_row_s" not in facts["again_0"]
    assert list((tmp_path / "files").iterdir()) == []


def test_a_run_that_goes_wrong_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ProgramError, match="ended with code 1 and no result"):
        measured(tmp_path, million.first(7, few=20, many=200))
    assert list((tmp_path / "files").iterdir()) == []


def test_files_are_spread_evenly(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path)
    with pictures.empty("many", 10, 3) as folder:
        assert [len(list(one.iterdir())) for one in sorted(folder.iterdir())] == [4, 3, 3]
    with pictures.empty("many", 10, 1) as folder:
        assert len(list(folder.iterdir())) == 10
        (tmp_path / "many.jsonl").touch()
    assert list(tmp_path.iterdir()) == []


def test_where_too_few_files_fit_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(f_favail=1_000))
    assert main("", million.sections(), ["--out", str(tmp_path / "million.json")], files=1_100_000) == 2
    assert "1,000 more files fit, 1,100,000 are needed. Set TMPDIR." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
