"""The counts that `blip2cap status` prints."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip2cap.outputs.journal import JournalSink
from blip2cap.outputs.open import is_unfinished
from blip2cap.outputs.parquet import ParquetSink
from blip2cap.outputs.parts.part import Part
from blip2cap.outputs.parts.plan import make_plan
from blip2cap.outputs.parts.store import LocalStore
from blip2cap.records import ImageRef
from tests.commands import TINY, invoke
from tests.rows import SETTINGS, failed, row, text_row, write


@pytest.fixture
def parts(here: Path) -> Path:
    """Five inputs in three parts: one done, with a failed row; one in progress, with one row; one not started."""
    store = LocalStore("captions/")
    store.prepare()
    refs = [ImageRef(path=f"{number}.jpg", name=f"{number}.jpg") for number in range(5)]
    plan = make_plan(store, refs, SETTINGS | {"questions": None}, part_size=2)
    assert plan is not None
    first, second = Part(store, plan, 0), Part(store, plan, 1)
    first.write([row(0), failed(1)])
    first.commit()
    second.write([row(2)])
    second.close()
    return here / "captions"


def test_parts_are_counted_from_the_plan(parts: Path) -> None:
    result = invoke("status", parts)
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [
        f"{parts}: 1 ok, 1 failed (1 truncated), 3 missing (1 of them in progress), 1 of 3 parts",
        "made with command caption, model tiny",
    ]


def test_json_has_the_counts_and_all_settings(parts: Path) -> None:
    result = invoke("status", parts, "--json")
    facts = json.loads(result.stdout)
    expected = {"rows_ok": 1, "rows_failed": 1, "failed_by_error": {"truncated": 1}, "rows_missing": 3}
    expected |= {"rows_in_work": 1, "parts": 3, "parts_there": 1, "images": 5}
    assert expected.items() <= facts.items()
    assert facts["settings"] == SETTINGS | {"questions": None}


def test_a_journal_is_counted_but_does_not_know_what_is_missing(here: Path) -> None:
    write(here / "captions.jsonl", row(1), row(2))
    result = invoke("status", "captions.jsonl")
    assert result.exit_code == 0
    assert "captions.jsonl: 2 ok, 0 failed, missing: not known from the file alone" in result.stdout
    assert "made with command caption, model tiny" in result.stdout
    write(here / "captions.jsonl", failed(3))
    result = invoke("status", "captions.jsonl")
    assert (result.exit_code, "2 ok, 1 failed (1 truncated)" in result.stdout) == (3, True)


def test_a_torn_last_line_is_said(here: Path) -> None:
    write(here / "captions.jsonl", row(1))
    with open(here / "captions.jsonl", "ab") as file:
        file.write(b'{"file_name": "2')
    result = invoke("status", "captions.jsonl")
    assert (result.exit_code, "a torn last line" in result.stdout) == (3, True)


def test_a_parquet_file_is_counted(here: Path) -> None:
    for stopped in (True, False):  # first there is only its journal
        with closing(ParquetSink(here / "captions.parquet")) as sink:
            sink.begin(SETTINGS)
            sink.write([row(1), failed(2)] if stopped else [])
            sink.finish(stopped=stopped)
        assert (here / "captions.parquet").exists() is not stopped
        result = invoke("status", "captions.parquet")
        assert result.exit_code == 3
        assert "captions.parquet: 1 ok, 1 failed (1 truncated)" in result.stdout
        assert "model tiny" in result.stdout


@pytest.mark.parametrize(
    ("name", "exit_code", "message"),
    [
        ("nothing.jsonl", 2, "no such file or folder"),
        ("notes.txt", 2, "expected a .jsonl or .parquet output, or a folder of parts"),
        ("folder", 2, "has no plan of parts"),
        ("bad.parquet", 5, "is damaged"),
        ("other.parquet", 5, "not a row of blip2cap"),
        ("memory://nothing/", 2, "has no plan of parts"),
    ],
)
def test_what_is_no_output_is_said(here: Path, name: str, exit_code: int, message: str) -> None:
    (here / "folder").mkdir()
    for file in ("notes.txt", "bad.parquet"):
        (here / file).touch()
    pq.write_table(pa.table({"a": [1]}), "other.parquet")
    result = invoke("status", name)
    assert (result.exit_code, message in result.stderr) == (exit_code, True), result.stderr


def test_status_writes_nothing(parts: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in parts.rglob("*")}
    invoke("status", parts)
    assert {path: path.stat().st_mtime_ns for path in parts.rglob("*")} == before


def test_a_name_that_would_steer_the_terminal_is_escaped(here: Path) -> None:
    write(here / "a\x1b[2J.jsonl", row(1))
    assert "\\x1b[2J.jsonl: 1 ok" in invoke("status", "a\x1b[2J.jsonl").stdout


@pytest.mark.parametrize("name", ["d.parquet", "d.jsonl"])
def test_an_export_without_a_manifest_is_counted_all_the_same(here: Path, name: str) -> None:
    rows = [text_row(file_name="a.jpg", text="a cat"), text_row(file_name="b.jpg", status="failed", error="corrupt")]
    if name.endswith(".jsonl"):
        (here / name).write_bytes(b"".join(row.as_json() for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist([row.as_dict() for row in rows]), name)
    result = invoke("status", name)
    assert result.exit_code == 3
    assert (
        result.stdout == f"{name}: 1 ok, 1 failed (1 corrupt), missing: not known from the file alone\n"
        "without a manifest: no run can resume it\n"
    )


def test_a_parquet_output_whose_first_run_died_while_its_model_was_loading_has_no_rows(here: Path) -> None:
    (here / "x.parquet.jsonl").touch()
    result = invoke("status", "x.parquet")
    assert (result.exit_code, result.stdout[:24]) == (0, "x.parquet: 0 ok, 0 faile")


def test_a_manifest_that_cannot_be_read_is_damage_and_not_none(here: Path) -> None:
    table = pa.Table.from_pylist([text_row(file_name="a.jpg", text="a cat").as_dict()])
    pq.write_table(table.replace_schema_metadata({"blip2cap": '{"settings": {}, "unknown": 1}'}), "x.parquet")
    result = invoke("status", "x.parquet")
    assert (result.exit_code, "is damaged: its manifest cannot be read" in result.stderr) == (5, True)


def test_a_torn_line_of_a_file_without_a_manifest_is_not_promised_to_be_made_again(here: Path) -> None:
    (here / "t.jsonl").write_bytes(text_row(file_name="a.jpg", text="a cat").as_json() + b"{")
    result = invoke("status", "t.jsonl")
    assert (result.exit_code, "a torn last line, missing" in result.stdout) == (3, True)


@pytest.mark.parametrize("out", ["captions.jsonl", "captions.parquet"])
def test_an_output_is_unfinished_until_its_run_has_made_all_its_rows(here: Path, out: str) -> None:
    def make(number: int, *, stopped: bool | None) -> None:
        with closing((ParquetSink if out.endswith(".parquet") else JournalSink)(here / out)) as sink:
            sink.begin(SETTINGS)
            sink.write([row(number)])
            if stopped is not None:  # None: killed
                sink.finish(stopped=stopped)

    for stopped in (None, True, False, None):
        make(1 if stopped is None else 2, stopped=stopped)
        result = invoke("status", out)
        assert result.exit_code == (0 if stopped is False else 3)
        assert (", unfinished: its run was stopped or is still writing" in result.stdout) is (stopped is not False)
        assert is_unfinished(out) is (stopped is not False)
        assert json.loads(invoke("status", out, "--json").stdout)["unfinished"] is (stopped is not False)
    result = invoke("status", out, "--prune")
    assert (result.exit_code, "its last run has not ended" in result.stderr) == (2, True)


def test_a_killed_run_with_nothing_left_to_do_is_finished_by_the_same_command(here: Path, scenes: Path) -> None:
    assert invoke("caption", scenes, *TINY).exit_code == 0
    path = here / "captions.jsonl.run.json"
    path.write_text(path.read_text().replace('"finished"', '"unfinished"'))
    assert invoke("status", "captions.jsonl").exit_code == 3
    assert invoke("caption", scenes, *TINY).exit_code == 0
    assert invoke("status", "captions.jsonl").exit_code == 0


def test_an_output_of_an_older_release_does_not_count_as_unfinished(here: Path) -> None:
    write(here / "captions.jsonl", row(1))
    path = here / "captions.jsonl.run.json"
    content = json.loads(path.read_text())
    del content["state"]
    path.write_text(json.dumps(content))
    assert invoke("status", "captions.jsonl").exit_code == 0
    write(here / "captions.jsonl", row(2))  # and a run continues it
    assert json.loads(path.read_text())["state"] == "finished"


def test_a_journal_without_manifest_is_counted_and_no_advice_would_lose_its_rows(here: Path, scenes: Path) -> None:
    with closing(ParquetSink(here / "captions.parquet")) as sink:
        sink.begin(SETTINGS)
        sink.write([row(1)])
        sink.finish(stopped=True)
    (here / "captions.parquet.jsonl.run.json").unlink()
    result = invoke("status", "captions.parquet")
    assert (result.exit_code, "1 ok, 0 failed" in result.stdout) == (0, True)
    for damage in (b"", b"{", None):
        path = here / "captions.jsonl.run.json"
        write(here / "captions.jsonl", row(1), overwrite=True)
        path.unlink() if damage is None else path.write_bytes(damage)
        result = invoke("caption", scenes, *TINY)
        assert (result.exit_code, "Restore it from a copy, or use another --out" in result.stderr) == (5, True)
        assert "--overwrite" not in result.stderr
