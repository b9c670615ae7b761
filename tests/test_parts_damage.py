"""Folders of parts with a damaged part, or with files that are not parts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from blip2cap.errors import OutputRefusedError
from blip2cap.outputs.parts.counts import read_counts
from blip2cap.outputs.parts.part import Part
from blip2cap.outputs.parts.plan import PartsPlan, make_plan
from blip2cap.outputs.parts.store import LocalStore
from blip2cap.records import ImageRef
from tests.commands import TINY, invoke
from tests.outputs import rows_of
from tests.rows import SETTINGS, failed, row

FOLDER = "captions/"


@pytest.fixture
def plan(here: Path) -> PartsPlan:
    """Sixty inputs in two finished parts."""
    store = LocalStore(FOLDER)
    store.prepare()
    refs = [ImageRef(path=f"{number}.jpg", name=f"{number}.jpg") for number in range(60)]
    plan = make_plan(store, refs, SETTINGS | {"questions": None}, part_size=30)
    assert plan is not None
    for index in range(2):
        part = Part(store, plan, index)
        part.write([row(30 * index + number) for number in range(30)])
        part.commit()
    return plan


def test_a_flipped_bit_of_a_part_is_found_or_changes_no_row(plan: PartsPlan) -> None:
    path = Path(FOLDER, "part-00001.parquet")
    content, good = path.read_bytes(), rows_of(path)
    num_found = 0
    for at in range(0, len(content), 47):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            read_counts(plan.store, plan, [1])
        except OutputRefusedError:
            num_found += 1
        else:
            assert rows_of(path) == good, at
    assert num_found > 10


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("status", FOLDER), "captions/part-00000.parquet is damaged, or was not made here: "),
        (("caption", "images", *TINY, "-o", FOLDER), "part-00000.parquet is damaged, or was not made here: "),
        (("caption", "images", *TINY, "-o", FOLDER, "--dry-run"), "part-00000.parquet is damaged"),
        (
            ("export", FOLDER, "--to", "csv", "-o", "x.csv"),
            "part-00000.parquet is damaged: not a complete Parquet file",
        ),
    ],
)
def test_a_flipped_byte_in_the_rows_of_a_part_ends_with_5_and_says_what_to_do(
    here: Path, scenes: Path, command: tuple[str, ...], message: str
) -> None:
    shutil.copytree(scenes, here / "images")
    assert invoke("caption", "images", *TINY, "-o", FOLDER).exit_code == 0
    path = here / "captions/part-00000.parquet"
    content = bytearray(path.read_bytes())
    content[content.index(b"000.png") + 2] ^= 1  # a name, which is still one
    path.write_bytes(content)
    result = invoke(*command)
    assert (result.exit_code, message in result.stderr) == (5, True), result.stderr
    assert "again" in result.stderr
    path.rename(here / "away.parquet")
    assert invoke("caption", "images", *TINY, "-o", FOLDER).exit_code == 0
    assert [each["file_name"] for each in rows_of(path)][:2] == ["000.png", "001.png"]


def test_counts_that_differ_from_the_rows_are_found_in_buckets_too(plan: PartsPlan, monkeypatch) -> None:
    path = Path(FOLDER, "part-00001.parquet")
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    monkeypatch.setattr(LocalStore, "shared", True)
    with pytest.raises(OutputRefusedError, match="its counts differ from its rows"):
        read_counts(plan.store, plan, [1])


def test_files_that_are_not_parts_of_the_plan_are_ignored_and_named(here: Path, plan: PartsPlan) -> None:
    for name in ("part-00001-copy.parquet", "part-00002.parquet", "other.parquet"):
        shutil.copy("captions/part-00001.parquet", f"captions/{name}")
    said = "captions/: ignored other.parquet, part-00001-copy.parquet, part-00002.parquet, not among its parts"
    result = invoke("status", FOLDER)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, said)
    result = invoke("export", FOLDER, "--to", "jsonl", "-o", "x.jsonl")
    assert (result.exit_code, said in result.stderr.splitlines()) == (0, True)
    assert len(rows_of(here / "x.jsonl")) == 60
    shutil.rmtree("captions/.blip2cap")  # as a copy of the parts alone
    (here / "captions/part-00002.parquet").unlink()
    assert invoke("export", FOLDER, "--to", "jsonl", "-o", "y.jsonl").exit_code == 0
    assert rows_of(here / "y.jsonl") == rows_of(here / "x.jsonl")


def test_a_run_names_files_that_are_not_parts(here: Path, scenes: Path) -> None:
    assert invoke("caption", scenes, *TINY, "-o", FOLDER).exit_code == 0
    shutil.copy("captions/part-00000.parquet", "captions/part-00000 (1).parquet")
    result = invoke("caption", scenes, *TINY, "-o", FOLDER)
    assert (result.exit_code, "ignored part-00000 (1).parquet, not among its parts" in result.stderr) == (0, True)


def test_failed_rows_are_among_the_rows_that_are_counted(here: Path) -> None:
    store = LocalStore("few/")
    store.prepare()
    plan = make_plan(store, [ImageRef(path=f"{n}.jpg", name=f"{n}.jpg") for n in range(2)], SETTINGS, part_size=2)
    assert plan is not None
    part = Part(store, plan, 0)
    part.write([row(0), failed(1)])
    part.commit()
    assert read_counts(store, plan, [0])[0].num_rows == 2
