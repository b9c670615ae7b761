from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip2cap.errors import OutputError, OutputRefusedError
from blip2cap.outputs import parquet as module
from blip2cap.outputs import parquet_table
from blip2cap.outputs.files import OS_FILES
from blip2cap.outputs.parquet import ParquetSink, journal_path, read_output
from blip2cap.rows import Row
from tests.outputs import run
from tests.rows import SETTINGS, failed, left_in, row, text_row

STRINGS = ["file_name", "file_name_b64", "text", "status", "error", "finish_reason"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "captions.parquet"


def write(path: Path, *rows: Row, stopped: bool = False, made_with: Mapping[str, object] = SETTINGS, **options: bool):
    sink = ParquetSink(path, files=OS_FILES, **options)
    try:
        sink.begin(made_with)
        sink.write(rows)
        sink.finish(stopped=stopped)
    finally:
        sink.close()


def rows_in(path: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(path).to_pylist()
    return rows


def manifest_in(path: Path) -> dict[str, object]:
    manifest: dict[str, object] = json.loads(pq.read_schema(path).metadata[b"blip2cap"])
    return manifest


def test_rows_come_back_as_they_were_written_and_nothing_else_is_left(path):
    rows = [row(1), failed(2), row(3, text="кот 🐈\u2028\0")]
    write(path, *rows)
    assert rows_in(path) == [one.as_dict() for one in rows]
    assert left_in(path.parent) == [path.name]


def test_columns_are_typed_and_never_null(path):
    write(path, failed(1))
    schema = pq.read_schema(path).remove_metadata()
    assert schema.names == [*row(1).as_dict()]
    assert all(schema.field(name).type == pa.string() for name in STRINGS)
    assert all(schema.field(name).type == pa.int64() for name in ("num_tokens", "width", "height"))
    assert not any(column.nullable for column in schema)


def test_several_texts_are_a_list_even_where_all_have_failed(path):
    one = text_row(file_name="a", file_name_b64="", texts=(), status="failed", error="corrupt")
    write(path, one, made_with=SETTINGS | {"num_captions": 2})
    assert pq.read_schema(path).field("texts").type.value_type == pa.string()
    assert rows_in(path) == [one.as_dict()]


def test_answers_have_questions(path):
    write(path, row(1, question="what?"), row(1, question="where?"), made_with=SETTINGS | {"command": "vqa"})
    assert [(one["question"], one["answer"]) for one in rows_in(path)] == [("what?", "a cat"), ("where?", "a cat")]
    assert read_output(path)[1].finished == {row(1, question="what?").key, row(1, question="where?").key}


def test_the_manifest_is_in_the_schema_with_its_counts(path):
    write(path, row(1), failed(2))
    created = manifest_in(path)["created"]
    write(path, row(3))
    manifest = manifest_in(path)
    assert manifest["settings"] == SETTINGS
    assert manifest["counts"] == {"ok": 2, "failed": {"truncated": 1}}
    assert manifest["created"] == created


def test_it_is_compressed(path):
    write(path, *(row(number) for number in range(100)))
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_resumed_run_adds_to_it(path):
    write(path, row(1), failed(2))
    sink = ParquetSink(path)
    assert sink.finished == {row(1).key, row(2).key}
    assert (sink.num_failed, sink.made_with) == (1, SETTINGS)
    sink.close()
    assert left_in(path.parent) == [path.name]
    write(path, row(3))
    assert rows_in(path) == [row(1).as_dict(), failed(2).as_dict(), row(3).as_dict()]


def test_a_run_that_was_stopped_leaves_a_journal_and_the_next_goes_on(path):
    write(path, row(1))
    write(path, row(2), stopped=True)
    assert rows_in(path) == [row(1).as_dict()]
    journal = journal_path(path)
    assert left_in(path.parent) == [path.name, journal.name, f"{journal.name}.run.json"]
    assert read_output(path)[1].finished == {row(1).key, row(2).key}
    write(path, row(3))
    assert rows_in(path) == [row(number).as_dict() for number in (1, 2, 3)]
    assert left_in(path.parent) == [path.name]


def test_rows_that_are_in_both_after_a_cut_are_there_once(path):
    write(path, row(1))
    write(path, row(2), failed(3), stopped=True)
    journal = {name: (path.parent / name).read_bytes() for name in left_in(path.parent) if name != path.name}
    run(path, [], "", files=OS_FILES)  # nothing to do: the journal becomes a part of the Parquet file
    for name, content in journal.items():
        (path.parent / name).write_bytes(content)
    sink = ParquetSink(path)
    assert sink.finished == {row(number).key for number in (1, 2, 3)}
    assert sink.num_failed == 1
    sink.finish()
    sink.close()
    assert rows_in(path) == [row(1).as_dict(), row(2).as_dict(), failed(3).as_dict()]
    assert manifest_in(path)["counts"] == {"ok": 2, "failed": {"truncated": 1}}


def test_it_is_written_and_read_a_part_at_a_time(path, monkeypatch):
    monkeypatch.setattr(parquet_table, "_ROW_GROUP", 7)
    for each in (module, parquet_table):
        monkeypatch.setattr(each, "BATCH", 3)
    monkeypatch.setattr(parquet_table, "_PIECE", 100)
    rows = [row(number, text="x" * number) for number in range(50)]
    write(path, *rows[:20])
    write(path, *rows[20:])
    assert rows_in(path) == [one.as_dict() for one in rows]
    groups = pq.ParquetFile(path).metadata
    assert max(groups.row_group(index).num_rows for index in range(groups.num_row_groups)) == 6


def test_failed_rows_are_done_again_and_replaced(path):
    write(path, row(1), failed(2), failed(3))
    write(path, failed(4), stopped=True)
    sink = ParquetSink(path, retry_failed=True)
    assert sink.finished == {row(1).key}
    assert sink.num_failed == 0
    sink.begin(SETTINGS)
    sink.write([row(2), failed(3), row(4)])
    sink.finish()
    sink.close()
    assert rows_in(path) == [row(1).as_dict(), row(2).as_dict(), failed(3).as_dict(), row(4).as_dict()]
    assert manifest_in(path)["counts"] == {"ok": 3, "failed": {"truncated": 1}}


def test_what_was_done_again_counts_though_the_run_was_stopped(path):
    write(path, row(1), failed(2), failed(3))
    write(path, row(2), stopped=True, retry_failed=True)
    manifest, journal = read_output(path)
    assert manifest is not None
    assert (journal.num_ok, journal.num_failed) == (2, 1)
    write(path, row(4))
    assert rows_in(path) == [one.as_dict() for one in (row(1), failed(3), row(2), row(4))]


def test_overwriting_begins_anew_with_other_settings(path):
    write(path, row(1))
    write(path, row(2), stopped=True)
    write(path, row(3), overwrite=True, made_with={"model": "other"}, stopped=True)
    assert not path.exists()
    write(path, row(4), made_with={"model": "other"})
    assert rows_in(path) == [row(3).as_dict(), row(4).as_dict()]


def test_overwriting_takes_a_file_that_is_not_ours_and_keeps_it_until_it_begins(path):
    path.write_bytes(b"my notes")
    ParquetSink(path, overwrite=True).close()
    assert path.read_bytes() == b"my notes"
    write(path, row(1), overwrite=True)
    assert rows_in(path) == [row(1).as_dict()]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_with_other_settings_is_refused_and_changes_nothing(path, stopped):
    write(path, row(1), stopped=stopped)
    before = {name: (path.parent / name).read_bytes() for name in left_in(path.parent)}
    with pytest.raises(OutputRefusedError, match=r'captions.parquet.*prompt was none, now "a photo of"'):
        write(path, row(2), made_with=SETTINGS | {"prompt": "a photo of"})
    assert {name: (path.parent / name).read_bytes() for name in left_in(path.parent)} == before


@pytest.mark.parametrize(
    "content", [b"", b"my notes", b"PAR1" + b"\0" * 50 + b"PAR1", pytest.param(None, id="somebody else's")]
)
def test_a_file_that_is_not_ours_is_refused_and_kept(path, content):
    if content is None:
        pq.write_table(pa.table({"file_name": ["a.jpg"]}), path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(OutputRefusedError, match=r"captions.parquet is (damaged|not an output of blip2cap)"):
        ParquetSink(path)
    assert path.read_bytes() == before
    assert left_in(path.parent) == [path.name]


def test_other_columns_than_the_manifest_says_are_refused(path):
    write(path, row(1))
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["text"]), path)
    with pytest.raises(OutputRefusedError, match="columns differ"):
        ParquetSink(path)


def test_a_folder_is_refused(path):
    path.mkdir()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"Is a directory\. Use another out\."):
            ParquetSink(path, overwrite=overwrite)


def test_a_damaged_page_is_refused_before_anything_is_done(path):
    """In any column: rows that are not read while resuming become rows of the next file."""
    write(path, *(row(number, text=f"text {number}") for number in range(50)))
    whole = path.read_bytes()
    metadata = pq.ParquetFile(path).metadata.row_group(0)
    for index in range(metadata.num_columns):
        column = metadata.column(index)
        start = column.dictionary_page_offset or column.data_page_offset
        middle = start + column.total_compressed_size - 3
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
        with pytest.raises(OutputRefusedError, match=r"captions.parquet is damaged"):
            ParquetSink(path)


def test_a_file_that_is_cut_anywhere_is_refused(path):
    write(path, row(1))
    whole = path.read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(OutputRefusedError, match="is damaged"):
            ParquetSink(path)


def test_a_row_that_does_not_fit_is_refused_and_the_old_file_stays(path):
    write(path, row(1))
    write(path, row(2), stopped=True)
    journal = journal_path(path)
    for damage in ({"text": None}, {"text": 3}, {"more": ""}):
        line = row(3).as_dict() | damage
        content = journal.read_bytes()
        journal.write_bytes(content + json.dumps(line).encode() + b"\n")
        with pytest.raises(OutputRefusedError, match=r"captions.parquet.jsonl is damaged"):
            run(path, [], "", files=OS_FILES)
        journal.write_bytes(content)
    assert rows_in(path) == [row(1).as_dict()]
    run(path, [], "", files=OS_FILES)
    assert rows_in(path) == [row(1).as_dict(), row(2).as_dict()]


def test_a_second_run_is_refused_through_a_link_too(path):
    link = path.with_name("link.parquet")
    os.symlink(path.name, link)
    first = ParquetSink(path)
    for name in (path, link):
        with pytest.raises(OutputRefusedError, match="is being written by another blip2cap run"):
            ParquetSink(name)
    first.close()
    write(link, row(1))
    assert link.is_symlink()
    assert rows_in(path) == [row(1).as_dict()]


def test_an_opener_that_never_begins_leaves_nothing_behind(path):
    ParquetSink(path).close()
    assert left_in(path.parent) == []


@pytest.mark.long
def test_memory_does_not_grow_with_the_rows_of_a_file(tmp_path):
    """Five times as many, 120 MB of rows more, take no more than other 50 MB."""
    code = """
import resource, sys
from pathlib import Path
from tests.outputs import *
from tests.files import FastFiles
path, count = Path(sys.argv[1]), int(sys.argv[2])
sink = ParquetSink(path, files=FastFiles())
sink.begin(SETTINGS)
for start in range(0, count, 1000):
    names = [f"{number}.jpg" for number in range(start, start + 1000)]
    sink.write([text_row(file_name=name, file_name_b64="", text=name * 40) for name in names])
sink.finish(stopped=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", code, str(tmp_path / f"{count}.parquet"), str(count)]))
        for count in (60_000, 300_000)
    ]
    print(peaks)
    assert peaks[1] - peaks[0] < 50_000, peaks


def test_pyarrow_is_imported_only_where_it_is_used(tmp_path):
    code = "import sys, blip2cap.outputs.parquet, blip2cap.cli.run; assert 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
