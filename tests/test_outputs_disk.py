"""Real disks that are full, and folders that are removed or read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blip2cap.errors import OutputError
from blip2cap.outputs.files import OS_FILES
from blip2cap.records import ImageRef
from tests.commands import TINY, invoke, names_below
from tests.full_disk import files_of_at_most
from tests.outputs import KINDS, REFS, names_in, rows_of, run

MANY = [ImageRef(path=f"/{number}.jpg", name=f"{number}.jpg") for number in range(400)]
NOBODY = 65534


def check_once(path: Path, refs: list[ImageRef], safe: list[str]) -> None:
    """Every image has one row, and those that were safe are still from the first run."""
    assert Counter(row["file_name"] for row in rows_of(path)) == Counter(ref.file_name for ref in refs)
    assert {row["text"] for row in rows_of(path) if row["file_name"] in safe} <= {"first"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_ends_the_run_and_the_next_goes_on(small_disk: Path, kind: str) -> None:
    path, safe = small_disk / kind, list[str]()
    (small_disk / "other").write_bytes(b"x" * 32_000)
    with pytest.raises(OutputError, match=r"cannot be written: No space left on device\. Its rows .* safe"):
        run(path, MANY, "first", files=OS_FILES, safe=safe)
    assert 50 < len(safe) < len(MANY)
    assert names_in(path) == {*safe}
    (small_disk / "other").unlink()
    with pytest.raises(OutputError, match="No space left"):  # there is room for some more
        run(path, MANY, "second", files=OS_FILES, safe=safe)
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    run(path, MANY, "third", files=OS_FILES)
    assert Counter(row["file_name"] for row in rows_of(path)) == Counter(ref.file_name for ref in MANY)
    assert {row["file_name"] for row in rows_of(path) if row["text"] != "third"} == {*safe}


def test_a_disk_that_is_full_when_rows_become_a_parquet_file_keeps_the_journal(scenes: Path, here: Path) -> None:
    command = ("caption", scenes, *TINY, "-o", "captions.parquet")
    with files_of_at_most(4000):
        result = invoke(*command)
    assert result.exit_code == 6
    assert "captions.parquet cannot be written: File too large. Its rows are safe in captions.parquet.jsonl" in (
        result.stderr
    )
    assert sorted(os.listdir(here)) == ["captions.parquet.jsonl", "captions.parquet.jsonl.run.json"]
    again = invoke(*command)
    assert again.exit_code == 0
    assert "loading" not in again.stderr
    assert [row["file_name"] for row in rows_of(here / "captions.parquet")] == names_below(scenes)
    assert os.listdir(here) == ["captions.parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_removed_under_way_is_no_success(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()

    class Removed(list[str]):
        def __iadd__(self, names: object) -> Removed:  # type: ignore[misc,override]
            shutil.rmtree(folder)
            return self

    with pytest.raises(OutputError, match="was removed or replaced while it was being written") as caught:
        run(folder / kind, REFS, "first", files=OS_FILES, safe=Removed())
    assert caught.value.exit_code == 6
    folder.mkdir()
    run(folder / kind, REFS, "second", files=OS_FILES)
    check_once(folder / kind, REFS, [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_may_not_be_written_any_more_keeps_its_rows(
    here: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "out").mkdir()
    os.chown(here / "out", NOBODY if os.getuid() == 0 else -1, -1)
    monkeypatch.chdir(here / "out")
    safe = list[str]()

    class Closing(list[str]):
        def __iadd__(self, names: list[str]) -> Closing:  # type: ignore[misc,override]
            os.chmod(".", 0o500)
            safe.extend(names)
            return self

    with as_nobody():
        with pytest.raises(OutputError, match=r"cannot be written: Permission denied. Its rows .*safe") as caught:
            run(Path(kind), REFS, "first", files=OS_FILES, safe=Closing())
        assert caught.value.exit_code == 6
        assert names_in(Path(kind)) == {*safe} == {ref.file_name for ref in REFS}
        os.chmod(".", 0o700)
        run(Path(kind), REFS, "second", files=OS_FILES)
        check_once(Path(kind), REFS, safe)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run as another user for a while, as root may write everywhere."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
