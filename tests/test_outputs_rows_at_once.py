"""Many rows read at once are those that json reads, or none: then json reads them one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip2cap.column_types import FLOAT, INTEGER, Vector
from blip2cap.outputs.journal import JournalSink
from blip2cap.outputs.parquet import ParquetSink, read_output
from blip2cap.outputs.rows_at_once import reader
from blip2cap.rows import Column, Row, make_schema
from blip2cap.tasks.text import text_schema
from tests.rows import SETTINGS, failed, row, text_row, write

CAPTIONS, ANSWERS = text_schema(question=False), text_schema(question=True)
LINES = b"".join(one.as_json() for one in (row(1), failed(2), row(3, text='a "cat"\n\u2028\\ 🐈')))


def parsed(lines: bytes, label: str = "") -> list[tuple[bytes, ...]]:
    """Read lines with json. Raises for what is not a row."""
    rows = [json.loads(line.decode()) for line in lines.split(b"\n")[:-1]]
    assert not any(one["file_name_b64"] for one in rows)
    return [
        tuple(str(one[name]).encode() if name else b"" for name in ("file_name", label, "status", "error"))
        for one in rows
    ]


def test_rows_are_read_with_their_status() -> None:
    assert reader(CAPTIONS)(LINES) == [
        (b"1.jpg", b"", b"ok", b""),
        (b"2.jpg", b"", b"failed", b"truncated"),
        (b"3.jpg", b"", b"ok", b""),
    ]


def test_a_number_that_json_refuses_is_left_to_it() -> None:
    many = row(1).as_json().replace(b'"num_tokens": 0', b'"num_tokens": ' + b"1" * 5000)
    with pytest.raises(ValueError, match="4300"):
        json.loads(many)
    assert reader(CAPTIONS)(many) is None


def test_answers_are_read_with_their_questions() -> None:
    lines = row(1, question="what is é?").as_json() + row(1, question="where?").as_json()
    assert reader(ANSWERS)(lines) == parsed(lines, "question")


def test_lists_and_numbers_of_all_kinds_are_read() -> None:
    schema = make_schema(
        Column("score", FLOAT), Column("vector", Vector((2,), "float16")), details=[Column("n", INTEGER)]
    )
    values = {"vector": schema.columns[3].type.empty, "status": "ok"}
    lines = b"".join(
        schema.row(file_name="a.jpg", score=score, n=-3, **values).as_json() for score in (0.0, -1.5, 1e-9, 2.5e300)
    )
    assert reader(schema)(lines) == parsed(lines)
    for texts in ((), ("a",), ("a", 'b "c"')):
        one = text_row(file_name="é.jpg", texts=texts)
        assert reader(one.schema)(one.as_json()) == [("é.jpg".encode(), b"", b"ok", b"")]


@pytest.mark.parametrize("name", ['a "b".jpg', "a\\b.jpg", "a\u202eb.jpg", "a\nb.jpg"])
def test_names_with_escapes_are_left_to_json(tmp_path: Path, name: str) -> None:
    rows = [row(1), text_row(file_name=name), text_row(file_name="caf\\xe9.jpg", file_name_b64="Y2Fm6S5qcGc=")]
    assert reader(CAPTIONS)(rows[0].as_json() + rows[1].as_json()) is None
    write(tmp_path / "x.jsonl", *rows)
    sink = JournalSink(tmp_path / "x.jsonl")
    assert sink.finished == {one.key for one in rows}
    sink.close()


@given(at=st.integers(0, len(LINES) - 1), byte=st.integers(0, 255), kind=st.sampled_from(["change", "insert", "drop"]))
@settings(deadline=None, max_examples=200)
def test_a_damaged_row_is_never_read_as_another_than_json_reads(at: int, byte: int, kind: str) -> None:
    damaged = LINES[:at] + (b"" if kind == "drop" else bytes([byte])) + LINES[at + (kind != "insert") :]
    if (found := reader(CAPTIONS)(damaged)) is not None:
        assert found == parsed(damaged)


@pytest.mark.parametrize(
    "damage", [b"x", b" ", b"{}", b"\xff", b'{"file_name": "0.jpg"}', LINES.split(b"\n")[0]], ids=repr
)
def test_what_stands_before_or_after_a_row_on_its_line_is_seen(damage: bytes) -> None:
    for damaged in (damage + LINES, LINES.replace(b"\n", damage + b"\n", 1), LINES[:-1] + damage + b"\n"):
        assert reader(CAPTIONS)(damaged) is None


@given(rows=st.lists(st.tuples(st.text('ab"\\é🐈\0\x7f', min_size=1, max_size=4), st.booleans()), max_size=6))
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_journal_is_read_the_same_in_whole_blocks_and_line_by_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, bool]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "x.jsonl"
    made: list[Row] = [
        text_row(file_name=f"{number}-{name}", status="ok" if ok else "failed", error="" if ok else "corrupt")
        for number, (name, ok) in enumerate(rows)
    ]
    write(path, *made, made_with=SETTINGS)
    for retry_failed in (False, True):
        sink = JournalSink(path, retry_failed=retry_failed)
        failed_keys = {one.key: one.error for one in made if one.status == "failed"}
        assert (sink.journal.num_ok, sink.journal.num_failed) == (len(made) - len(failed_keys), len(failed_keys))
        assert sink.journal.to_retry == (failed_keys if retry_failed else {})
        assert sink.finished == {one.key for one in made} - (failed_keys.keys() if retry_failed else set())
        sink.close()


@pytest.mark.parametrize("in_journal", [0, 1], ids=["a table alone", "a table and a journal"])
@pytest.mark.parametrize("question", [None, "what is é?"])
def test_a_table_is_read_at_once_and_row_by_row_to_the_same(
    tmp_path: Path, question: str | None, in_journal: int
) -> None:
    path = tmp_path / "x.parquet"
    settings = SETTINGS if question is None else {"command": "vqa", "model": "tiny", "questions": [question]}
    rows = [
        text_row(file_name="é.jpg", question=question),
        text_row(file_name="a.jpg", question=question, status="failed", error="corrupt"),
        text_row(file_name="caf\\xe9.jpg", file_name_b64="Y2Fm6S5qcGc=", question=question),
        text_row(file_name="z.jpg", question=question),
    ]
    for some in ([rows[3]], rows[:2], rows[2:3]):  # a table of each batch, or a journal beside it at last
        sink = ParquetSink(path)
        sink.begin(settings)
        sink.write(some)
        sink.finish(stopped=bool(in_journal) and some == rows[2:3])
        sink.close()
    _, journal = read_output(path, retry_failed=True)
    assert journal.finished == {one.key for one in rows if one.status == "ok"}
    assert journal.to_retry == {rows[1].key: "corrupt"}
    assert (journal.num_ok, dict(journal.failed)) == (3, {"corrupt": 1})
