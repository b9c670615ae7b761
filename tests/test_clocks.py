"""Setting the clock during a run does no harm."""

from __future__ import annotations

import ast
import itertools
import json
import time
from pathlib import Path

import pytest

import blip2cap
from tests.commands import TINY, invoke, names_below, read_rows

PACKAGE = Path(blip2cap.__file__).parent
STAMPS = {"outputs/manifest.py", "bench/benchmark.py"}
"""Say when something was made; nothing is computed from it."""
DATES = {"urls.py"}
"""A server may say until when to wait, as a date; the wait has an upper limit."""
WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}
LAST_NAMES = {name.rpartition(".")[2] for name in WALL_CLOCK}


def test_only_stamps_look_at_the_clock_on_the_wall() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in LAST_NAMES and ast.unparse(node) in WALL_CLOCK
    }
    assert found == STAMPS | DATES


def test_a_clock_that_jumps_harms_no_run(scenes: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle([2e9, 0.0, 1e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    command = ("caption", scenes, *TINY, "--batch-size", "1", "--json")
    facts = json.loads(invoke(*command, "--limit", "3").stdout)
    assert 0 < facts["seconds"] < 1e6
    assert invoke(*command).exit_code == 0
    assert [row["file_name"] for row in read_rows(here / "captions.jsonl")] == names_below(scenes)
