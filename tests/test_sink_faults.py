"""Every file operation of a run fails, is cut short, or is the last: the next run makes it good."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from blip2cap.errors import Blip2CapError, OutputError
from blip2cap.files import OS_FILES, Files
from blip2cap.plan import Plan
from blip2cap.prompts import Template
from blip2cap.records import ImageRef, Row
from blip2cap.sink.base import Output
from blip2cap.sink.journal import JournalSink
from blip2cap.sink.parquet import ParquetSink
from tests.files import ERRORS, Counting, Failing, FastFiles, Killed, Killing, PageCache
from tests.rows import SETTINGS, left_in

REFS = [ImageRef(path=f"/imgs/{name}", name=name) for name in ("a.jpg", "b.jpg", "c.jpg", "кот.jpg", "\udcff.jpg")]
KINDS = ["rows.jsonl", "rows.parquet"]
DONE_BEFORE = {"fresh": 0, "resumed": 3, "retried": 3}
"""Images that have rows when a run begins; where failed ones are done again, the second of them has failed."""


def open_output(path: Path, files: Files = OS_FILES, **options: bool) -> Output:
    kind = ParquetSink if path.suffix == ".parquet" else JournalSink
    return kind(path, files=files, **options)


def run(
    path: Path,
    refs: Iterable[ImageRef],
    text: str,
    *,
    files: Files,
    failing: str = "",
    safe: list[str] | None = None,
    stopped: bool = False,
    **options: bool,
) -> None:
    """Do what a command does, two images at a time; `safe` gets the names whose rows are promised to be on the disk."""
    sink = open_output(path, files, **options)
    try:
        tasks = list(Plan(Template("")).tasks(refs, sink.finished))
        rows = [
            Row(
                file_name=task.ref.file_name,
                file_name_b64=task.ref.file_name_b64,
                text="" if task.ref.name == failing else text,
                status="failed" if task.ref.name == failing else "ok",
                error="truncated" if task.ref.name == failing else "",
            )
            for task in tasks
        ]
        if rows:
            sink.begin(SETTINGS)
        for start in range(0, len(rows), 2):
            sink.write(rows[start : start + 2])
            if safe is not None:
                safe += [row.file_name for row in rows[start : start + 2]]
        sink.finish(stopped=stopped)
    finally:
        sink.close()


def prepare(folder: Path, kind: str, case: str) -> Path:
    """Make an output as a run finds it; a Parquet file has its last row in a journal still."""
    folder.mkdir(exist_ok=True)
    path, count = folder / kind, DONE_BEFORE[case]
    failing = REFS[1].name if case == "retried" else ""
    if count:
        run(path, REFS[: count - 1], "before", files=FastFiles(), failing=failing)
        run(path, REFS[:count], "before", files=FastFiles(), stopped=True)
    return path


def attempt(path: Path, case: str, files: Files, safe: list[str] | None = None) -> None:
    """The run that something happens to."""
    run(path, REFS, "first", files=files, safe=safe, retry_failed=case == "retried")


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def check_resumed(path: Path, case: str, safe: Iterable[str]) -> None:
    """Run the same command again, in peace: every image has one row, and nothing that was safe was done again."""
    run(path, REFS, "again", files=FastFiles(), retry_failed=case == "retried")
    rows = rows_of(path)
    assert Counter(row["file_name"] for row in rows) == Counter(ref.file_name for ref in REFS)
    assert {row["status"] for row in rows} == {"ok"}
    texts = {row["file_name"]: row["text"] for row in rows}
    before = {ref.file_name for ref in REFS[: DONE_BEFORE[case]]} - ({REFS[1].file_name} if case == "retried" else set())
    assert {name for name in before if texts[name] != "before"} == set()
    assert {name for name in safe if texts[name] == "again"} == set()
    manifest = [] if path.suffix == ".parquet" else ["rows.jsonl.run.json"]
    assert [name for name in left_in(path.parent) if not name.endswith(".tmp")] == [path.name, *manifest]


def operations(tmp_path: Path, kind: str, case: str) -> list[str]:
    """List what a run does when all is well."""
    files = Counting()
    path = prepare(tmp_path / "well", kind, case)
    attempt(path, case, files)
    check_resumed(path, case, [])
    assert {"open", "read", "write", "fdatasync", "fsync", "lock", "replace", "close"} <= {*files.names}
    assert files.names.count("fdatasync") == (3 if case == "fresh" else 1 if case == "resumed" else 2)
    return files.names


def every(*values: Iterable[object], quick: Callable[..., bool]) -> list[Any]:
    """Combine outputs, cases and `values`; the quick ones are run by `make test`."""
    return [
        pytest.param(*each, marks=[] if quick(*each) else [pytest.mark.long])
        for each in itertools.product(KINDS, DONE_BEFORE, *values)
    ]


@pytest.mark.parametrize(
    ("kind", "case", "error", "ever_after"),
    every(
        ERRORS,
        [False, True],
        quick=lambda kind, case, error, ever_after: (
            (error, ever_after) == ("EIO", False) and (kind == "rows.jsonl" or case == "retried")
        ),
    ),
)
def test_any_operation_may_fail(tmp_path: Path, kind: str, case: str, error: str, ever_after: bool) -> None:
    names = operations(tmp_path, kind, case)
    prepared = prepare(tmp_path / "prepared", kind, case).parent
    fired = 0
    for at, name in enumerate(names):
        if error == "short" and name not in ("read", "write"):
            continue
        path, safe = Path(shutil.copytree(prepared, tmp_path / str(at))) / kind, list[str]()
        files = Failing(at, ERRORS[error], ever_after=ever_after)
        try:
            attempt(path, case, files, safe)
            ended = False
        except Blip2CapError as failure:
            ended = True
            assert failure.exit_code == 6 or (failure.exit_code, name) in ((5, "open"), (5, "read"), (5, "close"))
            assert "Errno" not in str(failure) or failure.exit_code == 5
        assert files.num_fired >= 1, name
        assert files.num_fired == 1 or ever_after
        assert not (error == "short" and ended)
        if ended and kind == "rows.jsonl" and path.exists() and not ever_after:
            assert path.read_bytes()[-1:] in (b"", b"\n"), f"{name} {at}: not cut back"
        check_resumed(path, case, safe)
        fired += files.num_fired > 0
    assert fired == (len(names) if error != "short" else sum(name in ("read", "write") for name in names))


@pytest.mark.parametrize(
    ("kind", "case", "when"),
    every(
        ["before", "within", "after"],
        quick=lambda kind, case, when: when == "within" or (when == "after" and kind == "rows.jsonl"),
    ),
)
def test_the_process_may_end_at_any_operation(tmp_path: Path, kind: str, case: str, when: str) -> None:
    prepared = prepare(tmp_path / "prepared", kind, case).parent
    for at, name in enumerate(operations(tmp_path, kind, case)):
        if when == "within" and name != "write":
            continue
        path, safe = Path(shutil.copytree(prepared, tmp_path / str(at))) / kind, list[str]()
        files = Killing(at, when)
        with pytest.raises(Killed):
            attempt(path, case, files, safe)
        assert files.dead
        assert len(files.names) == at + (when == "after")
        check_resumed(path, case, safe)


def some_cuts(name: str, appended: bytes) -> set[int]:
    """Both ends, the middle, and around every line end."""
    lines = [index for index, byte in enumerate(appended) if byte == ord("\n")] if "json" in name else []
    around = {index + offset for index in lines for offset in (0, 1)}
    return {0, 1, len(appended) // 2, len(appended) - 1, len(appended)} & {*range(len(appended) + 1)} | around


def every_cut(name: str, appended: bytes) -> Iterable[int]:
    """Every byte of the rows; of other files, which are renamed when they are whole, some."""
    return range(len(appended) + 1) if "jsonl" in name and "run" not in name else some_cuts(name, appended)


@pytest.mark.parametrize(
    ("kind", "case", "cuts"),
    every(
        [some_cuts, every_cut],
        quick=lambda kind, case, cuts: cuts is some_cuts and (kind == "rows.jsonl" or case == "retried"),
    ),
)
def test_the_power_may_go_at_any_time(
    tmp_path: Path, kind: str, case: str, cuts: Callable[[str, bytes], Iterable[int]]
) -> None:
    """What the disk holds then is what was synced, and anything of what was not."""
    path, safe = prepare(tmp_path / "run", kind, case), list[str]()
    states: dict[tuple[tuple[str, bytes], ...], list[str]] = {}

    def note() -> None:
        for state in files.states(cuts):
            states[tuple(sorted(state.items()))] = [*safe]

    files = PageCache(path.parent, note)
    attempt(path, case, files, safe)
    for number, (state, promised) in enumerate(states.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in state:
            (folder / name).write_bytes(content)
        check_resumed(folder / kind, case, promised)
        shutil.rmtree(folder)
    assert len(states) > 40
    print(len(states))
