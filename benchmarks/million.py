"""The cost of a million files besides their captions: time to the first row, memory, and a run with everything done.

    PYTHONPATH=. python benchmarks/million.py --out benchmarks/results/million.json --minutes 30 [--before CHECKOUT]

Creates the files, all empty, in a temporary folder and removes them; it takes a million inodes. Runs the real command
as on a terminal, with a progress bar that counts in a second walk, and a model that is never called
(`without_model.py`): every file is read, fails and gets its row on the disk. For the run with everything done, these
rows are changed into captions. `--before` names a folder with other sources, with which that run is timed too, in turn.
"""

from __future__ import annotations

import argparse
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
_FAILED = b'"text": "", "status": "failed", "error": "truncated", "finish_reason": "", "num_tokens": 0'
_CAPTION = (
    b'"text": "two orange flowers next to a white umbrella in a field", "status": "ok", "error": "", '
    b'"finish_reason": "stop", "num_tokens": 11'
)


def million(
    num_folders: int, *, many: int = 1_000_000, few: int = 10_000, before: Path | None = None
) -> Callable[[Section], None]:
    """Return a section with all files in `num_folders` folders; `before` are other sources to compare with."""

    def run(section: Section) -> None:
        facts, timeout_s = section.facts, section.suite.left_s
        with section.pictures.empty("few", few, num_folders) as folder:
            facts["few"] = caption(folder, few, timeout_s())
        with section.pictures.empty("many", many, num_folders) as folder:
            facts["many"] = caption(folder, many, timeout_s())
            as_captions(folder.with_suffix(".jsonl"))
            for _ in range(2 if before else 1):  # the first of two finds no file in the cache of the system
                if before:
                    facts["again_before"] = caption(folder, many, timeout_s(), sources=before)
                facts["again"] = caption(folder, many, timeout_s())
        section.judge("first_row_s", facts["many"]["first_row_s"], at_most=_FIRST_ROW_S)
        section.judge("more_memory_mb", facts["many"]["peak_mb"] - facts["few"]["peak_mb"], at_most=_MORE_MEMORY_MB)
        section.judge("again_s", facts["again"]["seconds"], at_most=_AGAIN_S)

    return run


def as_captions(path: Path) -> None:
    """Change failed rows into captions."""
    changed = path.with_suffix(".changed")
    with path.open("rb") as old, changed.open("wb") as new:
        new.writelines(line.replace(_FAILED, _CAPTION) for line in old)
    changed.replace(path)


def caption(folder: Path, num_files: int, timeout_s: float, sources: Path = ROOT) -> Facts:
    """Run the command over a folder. Raises ProgramError if a row is missing."""
    command = [sys.executable, "-m", "benchmarks.without_model", "caption", str(folder), "--model", "tiny", "--json"]
    command += ["--batch-size", str(_BATCH_SIZE), "--out", str(folder.with_suffix(".jsonl"))]
    started = time.monotonic()
    found = run_program(command, timeout_s=timeout_s, cwd=sources)
    seconds = time.monotonic() - started
    summary = found.pop("summary")
    if num_files not in (summary["rows_failed"], summary["rows_there_before"]):
        raise ProgramError(f"expected {num_files} rows, got {summary}")
    facts: Facts = {"files": num_files, "rows_written": summary["rows_failed"], "seconds": round(seconds, 2)}
    return facts | found


SECTIONS = {"one_folder": million(1), "many_folders": million(1_000)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--before", type=Path)
    own, argv = parser.parse_known_args()
    if own.before:
        SECTIONS = {"one_folder": million(1, before=own.before), "many_folders": million(1_000, before=own.before)}
    sys.exit(main(__doc__, SECTIONS, argv, files=_NUM_FREE))
