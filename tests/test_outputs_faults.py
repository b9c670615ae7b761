"""Every file operation of a run fails, is shortened, or is the last one: the next run repairs the output."""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from blip2cap.errors import Blip2CapError, OutputError, OutputRefusedError
from blip2cap.outputs.base import Output
from blip2cap.outputs.files import OS_FILES, Files
from blip2cap.records import ImageRef
from blip2cap.rows import Row  # noqa
from tests.files import ERRORS, Counting, Failing, FastFiles, Killed, Killing, PageCache
from tests.outputs import KINDS, REFS, names_in, open_output, rows_of, run
from tests.rows import SETTINGS, left_in, text_row

DONE_BEFORE = {"fresh": 0, "resumed": 3, "retried": 3, "overwritten": 3}
"""Images that have rows when a run begins; if failed ones are retried, the second of them has failed."""
OTHER = SETTINGS | {"prompt": "of rows that are overwritten"}


def prepare(folder: Path, kind: str, case: str) -> Path:
    """Make an output as a run finds it; a Parquet file has its last row in a journal still."""
    folder.mkdir(exist_ok=True)
    path, count = folder / kind, DONE_BEFORE[case]
    failing = REFS[1].name if case == "retried" else ""
    if count:
        made_with = OTHER if case == "overwritten" else SETTINGS
        run(path, REFS[: count - 1], "before", files=FastFiles(), failing=failing, made_with=made_with)
        run(path, REFS[:count], "before", files=FastFiles(), stopped=True, made_with=made_with)
    return path


def attempt(path: Path, case: str, files: Files, safe: list[str] | None = None) -> None:
    """The run that is disturbed."""
    run(path, REFS, "first", files=files, safe=safe, retry_failed=case == "retried", overwrite=case == "overwritten")


def check_resumed(path: Path, case: str, safe: Iterable[str]) -> None:
    """Run the same command again without faults: every image has one row, and no row that was safe is made again."""
    try:
        run(path, REFS, "again", files=FastFiles(), retry_failed=case == "retried")
    except OutputRefusedError:  # nothing has been overwritten yet
        assert (case, [*safe]) == ("overwritten", [])
        run(path, REFS, "again", files=FastFiles(), overwrite=True)
    rows = rows_of(path)
    assert Counter(row["file_name"] for row in rows) == Counter(ref.file_name for ref in REFS)
    assert {row["status"] for row in rows} == {"ok"}
    texts = {row["file_name"]: row["text"] for row in rows}
    if case == "overwritten":
        assert "before" not in texts.values()
    else:
        before = {ref.file_name for ref in REFS[: DONE_BEFORE[case]] if case != "retried" or ref is not REFS[1]}
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
    assert {"open", "write", "fdatasync", "fsync", "lock", "replace", "close"} <= {*files.names}
    assert files.names.count("fdatasync") == {"fresh": 4, "resumed": 2, "retried": 3, "overwritten": 4}[case]
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
            ((error, ever_after) == ("EIO", False) and (kind == "rows.jsonl" or case == "retried"))
            or (kind, error) == ("rows.jsonl", "short")
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
        failure = None
        try:
            attempt(path, case, files, safe)
        except Blip2CapError as problem:
            failure = problem
        ended = failure is not None
        refused = name in ("open", "read", "close") and failure is not None and failure.exit_code == 5
        assert failure is None or refused or (failure.exit_code == 6 and "Errno" not in str(failure)), (name, failure)
        assert files.num_fired >= 1, name
        assert files.num_fired == 1 or ever_after
        assert not (error == "short" and ended)
        if ended and safe and not ever_after:
            before = set() if case == "overwritten" else names_in(prepared / kind, retried=case == "retried")
            assert names_in(path) == before | {*safe}, (name, at)
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
    """The disk then holds everything that was synced, and any part of the rest."""
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


@pytest.mark.parametrize("kind", KINDS)
def test_the_power_may_go_after_a_kill_and_a_resumed_run(tmp_path: Path, kind: str) -> None:
    """The killed run left rows that were not on the disk; the next one found them and reported that all is done."""
    names = operations(tmp_path, kind, "fresh")
    for at in [at for at, name in enumerate(names) if name == "fdatasync"]:
        folder = tmp_path / str(at)
        folder.mkdir()
        files = PageCache(folder, lambda: None)
        files.kill_at = at
        with pytest.raises(Killed):
            run(folder / kind, REFS, "first", files=files)
        files.kill_at = None
        run(folder / kind, REFS, "second", files=files)
        for number, state in enumerate(files.states(some_cuts)):
            left = tmp_path / f"{at}-{number}"
            left.mkdir()
            for name, content in state.items():
                (left / name).write_bytes(content)
            check_resumed(left / kind, "fresh", [ref.file_name for ref in REFS])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("errors", [["ENOSPC"], ["short", "ENOSPC"], ["short", "short", "EIO"]])
def test_a_batch_that_is_written_in_part_is_taken_back(tmp_path: Path, kind: str, errors: list[str]) -> None:
    path, safe, errors = prepare(tmp_path / "run", kind, "resumed"), list[str](), [*errors]

    class Full(FastFiles):
        def around(self, name: str, operation: Callable[..., Any], *arguments: Any) -> Any:
            if name == "write" and safe and errors:
                error = errors.pop(0)
                if error == "short":
                    return operation(arguments[0], memoryview(arguments[1])[:40])
                raise OSError(ERRORS[error], os.strerror(ERRORS[error] or 0))
            return super().around(name, operation, *arguments)

    before = names_in(path)
    with pytest.raises(OutputError, match=r"(No space left|Input/output).*, then run the same command again."):
        run(path, [*REFS, ImageRef(path="/z.jpg", name="z.jpg")], "first", files=Full(), safe=safe)
    assert errors == []
    assert len(safe) == 2
    assert names_in(path) == before | {*safe}


def test_another_run_may_begin_as_soon_as_the_journal_of_a_parquet_file_is_gone(tmp_path: Path) -> None:
    path, others = tmp_path / "rows.parquet", list[Output]()

    class Meanwhile(FastFiles):
        def around(self, name: str, operation: Callable[..., Any], *arguments: Any) -> Any:
            result = super().around(name, operation, *arguments)
            if name == "unlink" and arguments[0].name == "rows.parquet.jsonl":
                others.append(open_output(path))
                others[0].begin(SETTINGS)
            return result

    run(path, REFS[:2], "first", files=Meanwhile())
    (other,) = others
    other.write([text_row(file_name="z.jpg", file_name_b64="", text="second")])
    other.close()
    run(path, REFS, "third", files=OS_FILES)
    assert Counter(row["text"] for row in rows_of(path)) == {"first": 2, "second": 1, "third": 3}
