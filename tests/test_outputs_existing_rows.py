"""The rows that an output holds are those that json reads, and whatever is no row is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip2cap.column_types import FLOAT, INTEGER, Vector
from blip2cap.errors import OutputRefusedError
from blip2cap.outputs.existing_rows import Journal, read_journal
from blip2cap.outputs.journal import JournalSink
from blip2cap.outputs.parquet import ParquetSink, read_output
from blip2cap.rows import Column, Row, make_schema, row_key
from tests.rows import SETTINGS, failed, row, text_row, write

LINES = b"".join(one.as_json() for one in (row(1), failed(2), row(3, text='a "cat"\n\u2028\\ 🐈')))


def parsed(lines: bytes) -> set[str]:
    """Read the keys of lines with json. Raises for what is not a row."""
    rows = [json.loads(line.decode()) for line in lines.split(b"\n")[:-1]]
    assert all(isinstance(one[name], str) for one in rows for name in ("status", "error", "file_name_b64"))
    return {row_key(one["file_name"], one["file_name_b64"], None) for one in rows}


def read(tmp_path: Path, lines: bytes, label: str = "") -> Journal:
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines)
    return read_journal(path, label=label)


def test_rows_are_read_with_their_status(tmp_path: Path) -> None:
    journal = read(tmp_path, LINES)
    assert journal.finished == {row_key(f"{number}.jpg", "", None) for number in (1, 2, 3)}
    assert journal.failed_keys == {row_key("2.jpg", "", None)}
    assert (journal.num_ok, dict(journal.failed), journal.num_bytes) == (2, {"truncated": 1}, len(LINES))


def test_answers_are_read_with_their_questions(tmp_path: Path) -> None:
    lines = row(1, question="what is é?").as_json() + row(1, question="where?").as_json()
    keys = {row_key("1.jpg", "", question) for question in ("what is é?", "where?")}
    assert read(tmp_path, lines, "question").finished == keys


def test_lists_and_numbers_of_all_kinds_are_passed_over(tmp_path: Path) -> None:
    schema = make_schema(
        Column("score", FLOAT), Column("vector", Vector((2,), "float16")), details=[Column("n", INTEGER)]
    )
    values = {"vector": schema.columns[3].type.empty, "status": "ok"}
    rows = [
        schema.row(file_name=f"{score}.jpg", score=score, n=-3, **values) for score in (0.0, -1.5, 1e-9, 2.5e300)
    ] + [text_row(file_name=f"{len(texts)}.jpg", texts=texts) for texts in ((), ("a",), ("a", 'b "c"'))]
    assert read(tmp_path, b"".join(one.as_json() for one in rows)).finished == {one.key for one in rows}


@pytest.mark.parametrize("name", ['a "b".jpg', "a\\b.jpg", "a\u202eb.jpg", "a\nb.jpg"])
def test_names_with_escapes_are_read(tmp_path: Path, name: str) -> None:
    rows = [row(1), text_row(file_name=name), text_row(file_name="caf\\xe9.jpg", file_name_b64="Y2Fm6S5qcGc=")]
    assert read(tmp_path, b"".join(one.as_json() for one in rows)).finished == {one.key for one in rows}


@given(at=st.integers(0, len(LINES) - 1), byte=st.integers(0, 255), kind=st.sampled_from(["change", "insert", "drop"]))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_row_is_never_read_as_another_than_json_reads(tmp_path: Path, at: int, byte: int, kind: str) -> None:
    damaged = LINES[:at] + (b"" if kind == "drop" else bytes([byte])) + LINES[at + (kind != "insert") :]
    try:
        journal = read(tmp_path, damaged)
    except OutputRefusedError:
        return
    assert journal.finished == parsed(damaged[: journal.num_bytes])


@pytest.mark.parametrize(
    "damage", [b"x", b"{}", b"\xff", b"\0", b'{"file_name": "0.jpg"}', LINES.split(b"\n")[0]], ids=repr
)
def test_what_stands_before_or_after_a_row_on_its_line_is_damage_with_its_number(tmp_path: Path, damage: bytes) -> None:
    places = {damage + LINES: 1, LINES.replace(b"\n", damage + b"\n", 1): 1, LINES[:-1] + damage + b"\n": 3}
    for damaged, number in places.items():
        with pytest.raises(OutputRefusedError, match=f"x.jsonl:{number} is damaged"):
            read(tmp_path, damaged)


@given(rows=st.lists(st.tuples(st.text('ab"\\é🐈\0\x7f', min_size=1, max_size=4), st.booleans()), max_size=6))
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_journal_is_read_with_and_without_retries(
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
