from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip2cap.errors import InputError, OutputRefusedError
from blip2cap.outputs.open import open_rows
from blip2cap.outputs.parquet import ParquetSink, journal_path
from blip2cap.outputs.read import image_name
from blip2cap.rows import Row
from tests.exports import HOSTILE, answer, caption, failure, write_results
from tests.rows import SETTINGS, text_row

BYTES = os.fsdecode(b"caf\xe9/\xff.jpg")
ROWS = [*(caption(f"{number}.jpg", text) for number, text in enumerate(HOSTILE)), failure("bad.jpg"), caption(BYTES)]
SEVERAL = [caption("a.jpg", "one", texts=("one", "two")), failure("b.jpg", texts=())]
ANSWERS = [answer("a.jpg", "what?"), answer("a.jpg", "where?\nhere?", "no"), failure("b.jpg", question="what?")]


def write_parquet(path: Path, rows: list[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist([row.as_dict() for row in rows]), path)
    return path


@pytest.mark.parametrize("rows", [ROWS, SEVERAL, ANSWERS, []], ids=["captions", "several", "answers", "none"])
def test_rows_come_back_from_every_kind_of_output_as_often_as_wanted(tmp_path: Path, rows: list[Row]) -> None:
    journal = write_results(tmp_path / "rows.jsonl", rows)
    outputs = {"journal": open_rows(str(journal)), "stdin": open_rows("-", io.BytesIO(journal.read_bytes()))}
    if rows:
        outputs["parquet"] = open_rows(str(write_parquet(tmp_path / "rows.parquet", rows)))
        (tmp_path / "parts").mkdir()
        for number, row in enumerate(rows):
            write_parquet(tmp_path / "parts" / f"part-{number:01}.parquet", [row])
        (tmp_path / "parts" / "plan.json").write_text("{}")
        outputs["parts"] = open_rows(f"{tmp_path / 'parts'}/")
    for kind, results in outputs.items():
        assert list(results) == list(results) == rows, kind
        assert (results.count(), results.torn_bytes) == (len(rows), 0), kind


@pytest.mark.parametrize("question", [None, "what?"])
def test_every_column_that_a_row_may_have_comes_back(tmp_path: Path, question: str | None) -> None:
    row = text_row(file_name="x", question=question, text="x", texts=("x", "y"), flag="x", error="x", num_tokens=1)
    assert list(open_rows(str(write_results(tmp_path / "rows.jsonl", [row])))) == [row]


def test_a_pipe_is_read_once_and_gives_its_rows_twice(tmp_path: Path) -> None:
    there, here = os.pipe()
    os.write(here, b"".join(row.as_json() for row in ANSWERS))
    os.close(here)
    results = open_rows(f"/dev/fd/{there}")
    os.close(there)
    assert list(results) == list(results) == ANSWERS


def test_a_torn_tail_is_left_out_and_its_length_known(tmp_path: Path) -> None:
    whole = b"".join(row.as_json() for row in ROWS[:3])
    for cut in range(1, len(ROWS[2].as_json())):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(whole[:-cut])
        results = open_rows(str(path))
        assert list(results) == ROWS[:2]
        assert results.torn_bytes == len(ROWS[2].as_json()) - cut
        assert results.count() == 2


def change(**columns: object) -> bytes:
    return json.dumps({**ROWS[0].as_dict(), **columns}).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no json",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"text": "x"}',
        change(file_name=None),
        change(file_name=""),
        change(file_name="a\0b"),
        change(text=5),
        change(text=None),
        change(width="4"),
        change(num_tokens=1.5),
        change(status="done"),
        change(texts="two"),
        change(texts=[1]),
        change(text="\ud800"),
        change(file_name_b64="?"),
        change(file_name_b64=base64.b64encode(b"../x").decode()),
        change(question="what?", answer="x"),
        change(texts=["another kind"]),
    ],
)
def test_damage_in_the_middle_is_refused_with_its_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(row.as_json() for row in ROWS[:2]) + line + b"\n" + ROWS[2].as_json())
    with pytest.raises(OutputRefusedError, match=r"rows\.jsonl:3: not a row of blip2cap \("):
        list(open_rows(str(path)))


def test_columns_that_are_no_row_s_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(change(score=0.5) + b"\n")
    assert list(open_rows(str(path))) == ROWS[:1]


def run_to_parquet(path: Path, rows: Sequence[Row], *, stopped: bool) -> Path:
    """Write rows as a run does; one that was stopped leaves them in the journal."""
    with closing(ParquetSink(path)) as sink:
        sink.begin(SETTINGS)
        sink.write(rows)
        sink.finish(stopped=stopped)
    return path


def test_a_stopped_run_to_parquet_has_its_rows_in_the_journal(tmp_path: Path) -> None:
    path = run_to_parquet(tmp_path / "rows.PARQUET", ROWS, stopped=True)
    (tmp_path / "link.parquet").symlink_to(path.name)
    for given in (path, tmp_path / "link.parquet"):
        results = open_rows(str(given))
        assert list(results) == list(results) == ROWS
        assert results.count() == len(ROWS)
    assert not path.exists()


def test_rows_of_the_journal_count_instead_of_those_in_the_parquet_file_and_follow_them(tmp_path: Path) -> None:
    path = run_to_parquet(
        tmp_path / "rows.parquet", [caption("a.jpg"), failure("b.jpg"), caption(BYTES)], stopped=False
    )
    new = [caption("b.jpg", "done again"), caption(BYTES, "changed"), caption("c.jpg")]
    write_results(journal_path(path), new)
    results = open_rows(str(path))
    assert list(results) == list(results) == [caption("a.jpg"), *new]
    assert results.count() == 4
    run_to_parquet(tmp_path / "other.parquet", [caption("a.jpg")], stopped=False)
    run_to_parquet(tmp_path / "other.parquet", [caption("b.jpg")], stopped=True)
    assert [row.file_name for row in open_rows(str(tmp_path / "other.parquet"))] == ["a.jpg", "b.jpg"]


def test_a_journal_of_a_parquet_file_may_be_torn_or_damaged_like_any(tmp_path: Path) -> None:
    path = run_to_parquet(tmp_path / "rows.parquet", [caption("a.jpg")], stopped=False)
    line = caption("b.jpg").as_json()
    journal_path(path).write_bytes(line + line[:-1])
    results = open_rows(str(path))
    assert [row.file_name for row in results] == ["a.jpg", "b.jpg"]
    assert results.torn_bytes == len(line) - 1
    journal_path(path).write_bytes(line + b"[]\n")
    with pytest.raises(OutputRefusedError, match=r"rows\.parquet\.jsonl:2: not a row of blip2cap"):
        list(results)
    journal_path(path).write_bytes(answer("b.jpg", "what?").as_json())
    with pytest.raises(OutputRefusedError, match=r"rows\.parquet\.jsonl:1: .*columns differ"):
        list(results)


def test_a_run_that_ends_while_its_rows_are_read_is_said(tmp_path: Path) -> None:
    path = run_to_parquet(tmp_path / "rows.parquet", ROWS[:2], stopped=False)
    run_to_parquet(path, ROWS[2:], stopped=True)
    results = open_rows(str(path))
    rows = iter(results)
    next(rows)
    run_to_parquet(path, [], stopped=False)
    with pytest.raises(OutputRefusedError, match="was finished by its run while it was read"):
        list(rows)
    assert list(results) == ROWS


def test_a_parquet_file_without_its_end_is_damaged(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    whole = path.read_bytes()
    for content in (whole[:-5], whole[: len(whole) // 2], b"", b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(OutputRefusedError, match=r"rows\.parquet is damaged"):
            list(open_rows(str(path)))


def test_a_parquet_file_of_another_tool_is_no_output(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"file_name": ["a.jpg"], "label": [1]}), path)
    with pytest.raises(OutputRefusedError, match=r"other\.parquet:1: not a row of blip2cap \(no column 'text'\)"):
        list(open_rows(str(path)))


def test_what_is_not_there_or_holds_no_output_is_an_input_error(tmp_path: Path) -> None:
    for given, reason in (("missing.jsonl", "No such file"), (".", "a folder without part-")):
        with pytest.raises(InputError, match=reason):
            open_rows(str(tmp_path / given))
    with pytest.raises(InputError, match=r"^s3://bucket/captions/: a URL\. Expected a local output: copy it"):
        open_rows("s3://bucket/captions/")


def test_an_image_has_the_name_that_the_system_knows() -> None:
    assert image_name(caption(BYTES)) == BYTES
    assert image_name(caption("кот\\xe9.jpg")) == "кот\\xe9.jpg"
