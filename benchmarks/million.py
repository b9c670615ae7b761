"""The cost of a million files besides their captions: time to the first row, memory, and a run with everything done.

    PYTHONPATH=. python benchmarks/million.py --out benchmarks/results/million.json --minutes 30

Creates the files, all empty, in a temporary folder and removes them; it takes a million inodes. Runs the real command
as on a terminal, with a progress bar that counts in a second walk, and a model that is never called
(`without_model.py`): every file is read, fails and gets its row on the disk.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Facts
from benchmarks.programs import ROOT
from benchmarks.suite import Section, main
from blip2cap.bench.programs import ProgramError, run_program

_FIRST_ROW_S, _MORE_MEMORY_MB, _AGAIN_S = 5, 100, 10
"""The targets."""
_BATCH_SIZE = 128
"""Rows written at once: with fewer, the disk is measured."""
_NUM_FREE = 1_100_000


def million(num_folders: int, *, many: int = 1_000_000, few: int = 10_000) -> Callable[[Section], None]:
    """Return a section with all files in `num_folders` folders."""

    def run(section: Section) -> None:
        facts, timeout_s = section.facts, section.suite.left_s
        with section.pictures.empty("few", few, num_folders) as folder:
            facts["few"] = caption(folder, few, timeout_s())
        with section.pictures.empty("many", many, num_folders) as folder:
            facts["many"] = caption(folder, many, timeout_s())
            facts["again"] = caption(folder, many, timeout_s())
        section.judge("first_row_s", facts["many"]["first_row_s"], at_most=_FIRST_ROW_S)
        section.judge("more_memory_mb", facts["many"]["peak_mb"] - facts["few"]["peak_mb"], at_most=_MORE_MEMORY_MB)
        section.judge("again_s", facts["again"]["seconds"], at_most=_AGAIN_S)

    return run


def caption(folder: Path, num_files: int, timeout_s: float) -> Facts:
    """Run the command over a folder. Raises ProgramError if a row is missing."""
    command = [sys.executable, "-m", "benchmarks.without_model", "caption", str(folder), "--model", "tiny", "--json"]
    command += ["--batch-size", str(_BATCH_SIZE), "--out", str(folder.with_suffix(".jsonl"))]
    started = time.monotonic()
    found = run_program(command, timeout_s=timeout_s, cwd=ROOT)
    seconds = time.monotonic() - started
    summary = found.pop("summary")
    if num_files not in (summary["rows_failed"], summary["rows_there_before"]):
        raise ProgramError(f"expected {num_files} rows, got {summary}")
    facts: Facts = {"files": num_files, "rows_written": summary["rows_failed"], "seconds": round(seconds, 2)}
    return facts | found


SECTIONS = {"one_folder": million(1), "many_folders": million(1_000)}

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, None, files=_NUM_FREE))
