"""What a million files cost beside their captions: how long until the first row, how much memory, how long a run that
finds everything done.

    PYTHONPATH=. python benchmarks/million.py --out benchmarks/results/million.json --minutes 30

Makes the files, all empty, in a temporary folder and removes them again; it takes a million inodes. Runs the real
command as on a terminal, with a progress bar that counts by a second walk, and with a model that is never asked
(`without_model.py`): every file is read, fails and gets its row on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.programs import ROOT, ProgramError, environment, why
from benchmarks.suite import Facts, Suite, about, arguments, judge

_FIRST_ROW_S, _MORE_MEMORY_MB, _AGAIN_S = 5, 100, 10
"""What is to be reached."""
_BATCH_SIZE = 128
"""Rows that are written at once: else it is the disk that is measured."""


class Million:
    """The sections."""

    def __init__(
        self, suite: Suite, folder: Path, *, many: int = 1_000_000, few: int = 10_000, num_folders: int = 1_000
    ) -> None:
        self.suite, self.folder, self.many, self.few, self.num_folders = suite, folder, many, few, num_folders

    def one_folder(self, facts: Facts) -> None:
        """All files in one folder."""
        self._measure(facts, 1)

    def many_folders(self, facts: Facts) -> None:
        """The same number of files, spread."""
        self._measure(facts, self.num_folders)

    def _measure(self, facts: Facts, num_folders: int) -> None:
        with _files(self.folder / "few", self.few, num_folders) as folder:
            few = facts["few"] = self._caption(folder, self.few)
        with _files(self.folder / "many", self.many, num_folders) as folder:
            many = facts["many"] = self._caption(folder, self.many)
            again = facts["again"] = self._caption(folder, self.many)
        judge(facts, "first_row_s", many["first_row_s"], at_most=_FIRST_ROW_S)
        judge(facts, "more_memory_mb", many["peak_mb"] - few["peak_mb"], at_most=_MORE_MEMORY_MB)
        judge(facts, "again_s", again["seconds"], at_most=_AGAIN_S)

    def _caption(self, folder: Path, num_files: int) -> Facts:
        """Run the command over a folder, or run it again. Raises ProgramError if a row is missing."""
        found = folder.with_suffix(".json")
        command = [sys.executable, "benchmarks/without_model.py", found, "caption", folder, "--model", "tiny", "--json"]
        command += ["--batch-size", _BATCH_SIZE, "--out", folder.with_suffix(".jsonl")]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.monotonic()
        stdout, stderr, code = _on_terminal([str(part) for part in command], self.suite.left_s())
        seconds = time.monotonic() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if code != 3:  # some have failed: all of them, as they should
            raise ProgramError(why(code, stderr))
        summary = json.loads(stdout)
        if num_files not in (summary["rows_failed"], summary["rows_there_before"]):
            raise ProgramError(f"expected {num_files} rows, got {stdout}")
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        facts: Facts = {"files": num_files, "rows_written": summary["rows_failed"]}
        return facts | {"seconds": round(seconds, 2), "cpu_s": round(cpu_s, 2)} | json.loads(found.read_text())


@contextmanager
def _files(folder: Path, num_files: int, num_folders: int) -> Iterator[Path]:
    """Make empty files with the suffix of images, as evenly spread as they can be; remove them, and the rows, again."""
    below = [folder if num_folders == 1 else folder / f"{number:04}" for number in range(num_folders)]
    for one in below:
        one.mkdir(parents=True)
    prefixes = [f"{one}/photo-" for one in below]
    try:
        for number in range(num_files):
            os.close(os.open(f"{prefixes[number % num_folders]}{number:09}.jpg", os.O_CREAT | os.O_WRONLY))
        yield folder
    finally:
        shutil.rmtree(folder)
        for path in folder.parent.glob(f"{folder.name}.*"):
            path.unlink()


def _on_terminal(command: Sequence[str], timeout_s: float) -> tuple[str, str, int]:
    """Run a command whose stderr is a terminal; return what it printed to stdout and stderr, and its exit code."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(ours=True), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        printed = b""
        ends = time.monotonic() + timeout_s
        with contextlib.suppress(OSError):  # EIO: it has ended
            while block := os.read(ours, 65536):
                printed = (printed + block)[-10_000:]  # the bar draws itself ten times a second
                if time.monotonic() > ends:
                    process.kill()
        os.close(ours)
        assert process.stdout is not None
        stdout = process.stdout.read()
    return stdout.decode(), printed.decode(errors="replace"), process.returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the file."""
    options = arguments(__doc__, ("one_folder", "many_folders"), argv)
    suite = Suite(options.out, about("cpu", argv), minutes=options.minutes, only=options.only)
    with TemporaryDirectory(prefix="million-") as folder:
        if os.statvfs(folder).f_favail < 1_100_000:
            print(f"{folder}: fewer than 1,100,000 files fit. Set TMPDIR to a folder with more room.", file=sys.stderr)
            return 2
        million = Million(suite, Path(folder))
        return suite.run({"one_folder": million.one_folder, "many_folders": million.many_folders})


if __name__ == "__main__":
    sys.exit(main())
