"""The benchmark of a million files, with a few of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import million
from benchmarks.million import Million
from benchmarks.programs import ProgramError
from benchmarks.suite import Facts, Suite


def measured(folder: Path, **settings: int) -> Facts:
    suite = Suite(folder / "million.json", {}, say=lambda line: None)
    one = Million(suite, folder / "files", few=20, many=200, num_folders=7, **settings)
    facts: Facts = {}
    one.many_folders(facts)
    return facts


@pytest.mark.slow
def test_files_are_made_done_found_done_and_removed(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    facts = measured(tmp_path)
    assert [facts[name]["files"] for name in ("few", "many", "again")] == [20, 200, 200]
    assert [facts[name]["rows_written"] for name in ("few", "many", "again")] == [20, 200, 0]
    assert [figure["at_most"] for figure in facts["figures"].values()] == [5, 100, 10]
    assert "first_row_s" not in facts["again"]
    assert facts["many"]["peak_mb"] > 50
    assert list((tmp_path / "files").iterdir()) == []


def test_a_run_that_goes_wrong_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files").mkdir()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ProgramError, match="ended with code 1 and no result"):
        measured(tmp_path)
    assert list((tmp_path / "files").iterdir()) == []


def test_files_are_spread_evenly(tmp_path: Path) -> None:
    with million._files(tmp_path / "many", 10, 3) as folder:
        assert [len(list(one.iterdir())) for one in sorted(folder.iterdir())] == [4, 3, 3]
    with million._files(tmp_path / "many", 10, 1) as folder:
        assert len(list(folder.iterdir())) == 10
    assert list(tmp_path.iterdir()) == []


def test_without_room_for_the_files_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(f_favail=1_000))
    assert million.main(["--out", str(tmp_path / "million.json")]) == 2
    assert list(tmp_path.iterdir()) == []
