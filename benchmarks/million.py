"""The cost of a million files besides their captions: time to the first row, memory, and a run with everything done.

    PYTHONPATH=. python benchmarks/million.py --out benchmarks/results/million.json --minutes 30 [--before CHECKOUT]

Creates the files, all empty, in a temporary folder and removes them; it takes a million inodes. Runs the real command
as on a terminal, with a progress bar that counts in a second walk, and a model that is never called
(`without_model.py`): every file is read, fails and gets its row on the disk. The runs with everything done (`again`)
find a caption for each file. `--before` names a folder with other sources, with which they are timed too, in turn.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks.measure import Facts
from benchmarks.programs import ROOT
from benchmarks.suite import Section, main
from blip2cap.bench.programs import ProgramError, run_program
from blip2cap.jobs.job import Job
from blip2cap.options import ModelOptions, OutputOptions, SourceOptions
from blip2cap.outputs.journal import JournalSink
from blip2cap.source.inputs import Source
from blip2cap.tasks.caption import Caption
from blip2cap.tasks.text import text_schema

_FIRST_ROW_S, _MORE_MEMORY_MB, _AGAIN_S = 5, 100, 10
"""The targets."""
_BATCH_SIZE = 128
"""Rows written at once: with fewer, the disk is measured."""
_ROWS_AT_ONCE = 10_000
_NUM_FREE = 1_100_000
_CAPTION = "two orange flowers next to a white umbrella in a field"


def first(num_folders: int, *, many: int = 1_000_000, few: int = 10_000) -> Callable[[Section], None]:
    """Return a section that runs over many files in `num_folders` folders, and over few."""

    def run(section: Section) -> None:
        facts, timeout_s = section.facts, section.suite.left_s
        for name, num_files in (("few", few), ("many", many)):
            with section.pictures.empty(name, num_files, num_folders) as folder:
                facts[name] = caption(folder, num_files, timeout_s())
        section.judge("first_row_s", facts["many"]["first_row_s"], at_most=_FIRST_ROW_S)
        section.judge("more_memory_mb", facts["many"]["peak_mb"] - facts["few"]["peak_mb"], at_most=_MORE_MEMORY_MB)

    return run


def again(num_folders: int, *, many: int = 1_000_000, before: Path | None = None) -> Callable[[Section], None]:
    """Return a section that runs again over files in `num_folders` folders that all have a caption.

    `before` are other sources to compare with.
    """

    def run(section: Section) -> None:
        facts, timeout_s = section.facts, section.suite.left_s
        with section.pictures.empty("again", many, num_folders) as folder:
            write_captions(folder)
            for turn in range(2 if before else 1):  # the first of two finds no file in the cache of the system
                if before:
                    facts[f"before_{turn}"] = caption(folder, many, timeout_s(), sources=before)
                facts[f"again_{turn}"] = caption(folder, many, timeout_s())
        seconds = [each["seconds"] for name, each in facts.items() if name.startswith("again")]
        section.judge("again_s", min(seconds), at_most=_AGAIN_S)

    return run


def write_captions(folder: Path) -> None:
    """Write the output of a finished run over a folder."""
    job = Job(
        task=Caption(),
        source=SourceOptions(inputs=(str(folder),)),
        output=OutputOptions(out=str(folder.with_suffix(".jsonl"))),
        model=ModelOptions(name="tiny", dtype="float32"),
    )
    source = Source(job.source)
    text = {"text": _CAPTION, "status": "ok", "finish_reason": "stop", "num_tokens": 11}
    rows = (text_schema().row(file_name=ref.file_name, **text) for ref in source)
    with closing(JournalSink(Path(job.output.out))) as sink:
        sink.begin(job.known_settings(source))
        while batch := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            sink.write(batch)
        sink.finish()


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


def sections(before: Path | None = None) -> dict[str, Callable[[Section], None]]:
    """Return all sections."""
    return {
        "one_folder": first(1),
        "many_folders": first(1_000),
        "again_one_folder": again(1, before=before),
        "again_many_folders": again(1_000, before=before),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--before", type=Path)
    own, argv = parser.parse_known_args()
    sys.exit(main(__doc__, sections(own.before), argv, files=_NUM_FREE))
