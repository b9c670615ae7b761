import errno
import json
import os
from collections import Counter

import pytest

from blip2cap.errors import OutputError, OutputRefusedError
from blip2cap.records import Row
from blip2cap.sink import journal as sink_module
from blip2cap.sink.journal import JournalSink, manifest_path, read_journal
from tests.rows import SETTINGS, columns_of, failed, row, write

ROWS = [row(1), failed(2), row(3, text="кот\u2028🐈"), row(4)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "captions.jsonl"


@pytest.fixture
def fast_disk(monkeypatch):
    """Leave out waiting for the disk where a test writes hundreds of files."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(sink_module, "_fdatasync", lambda descriptor: None)


def resume(path, rows: list[Row]) -> list[Row]:
    """Do what a run does: write the rows that are not there, in two batches; return those that were there."""
    sink = JournalSink(path)
    missing = [one for one in rows if one.key not in sink.finished]
    there = [one for one in rows if one.key in sink.finished]
    sink.begin(SETTINGS)
    sink.write(missing[:2])
    sink.write(missing[2:])
    sink.close()
    return there


def test_a_journal_that_is_cut_at_any_byte_is_made_whole_again(path, fast_disk):
    rows = ROWS[:3]
    write(path, *rows)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        there = resume(path, rows)
        assert path.read_bytes() == whole, cut
        assert len(there) == whole[:cut].count(b"\n"), cut


def test_a_journal_that_is_cut_again_and_again_has_every_row_once(path, fast_disk):
    write(path, *ROWS)
    whole = path.read_bytes()
    for cut in range(len(whole), 0, -7):
        path.write_bytes(path.read_bytes()[:cut])
        resume(path, ROWS)
    assert Counter(str(columns["file_name"]) for columns in columns_of(path)) == {f"{n}.jpg": 1 for n in (1, 2, 3, 4)}


def test_a_torn_tail_is_cut_before_the_first_write(path):
    write(path, row(1))
    whole = path.read_bytes()
    path.write_bytes(whole + row(2).as_json()[:20])
    sink = JournalSink(path)
    assert sink.journal.torn_bytes == 20
    assert sink.finished == {row(1).key}
    assert path.stat().st_size == len(whole) + 20
    sink.begin(SETTINGS)
    assert path.read_bytes() == whole
    sink.close()


def test_a_whole_row_without_its_newline_is_a_torn_tail(path):
    write(path, row(1), row(2))
    path.write_bytes(path.read_bytes()[:-1])
    assert read_journal(path).finished == {row(1).key}


def test_a_tail_of_zeros_is_a_torn_tail(path):
    write(path, row(1))
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 4096)
    write(path, row(2))
    assert path.read_bytes() == whole + row(2).as_json()


def test_a_torn_tail_is_kept_by_a_run_that_never_begins(path):
    write(path, row(1))
    torn = path.read_bytes() + b'{"file_na'
    path.write_bytes(torn)
    JournalSink(path).close()
    assert path.read_bytes() == torn


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\0" * 30,
        b'{"file_name": "2.jpg", "fi',
        b"3",
        b'"text"',
        b"null",
        b"[]",
        b"{}",
        b'{"file_name": "2.jpg", "file_name_b64": ""}',
        b'{"file_name": null, "file_name_b64": "", "status": "ok"}',
        b'{"file_name": 2, "file_name_b64": "", "status": "ok"}',
        b'{"file_name": [], "file_name_b64": "", "status": "ok"}',
        b'{"file_name": "2.jpg", "file_name_b64": "", "status": "ok"} {}',
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("line", [1, 2, 4])
def test_a_damaged_line_is_refused_with_its_number(path, line, damage):
    write(path, *ROWS)
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = damage
    path.write_bytes(b"\n".join(lines))
    before = path.read_bytes()
    with pytest.raises(OutputRefusedError, match=rf"captions.jsonl:{line} is damaged"):
        JournalSink(path)
    assert path.read_bytes() == before


def test_a_run_that_was_refused_has_let_go_of_the_lock(path):
    write(path, row(1))
    whole = path.read_bytes()
    path.write_bytes(b"damage\n")
    with pytest.raises(OutputRefusedError):
        JournalSink(path)
    path.write_bytes(whole)
    write(path, row(2))


def full_disk(room: int):
    """Stand in for os.write on a disk with `room` bytes left."""
    write_bytes = os.write

    def limited(file: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write_bytes(file, bytes(data)[:room])
        room -= written
        return written

    return limited


@pytest.mark.parametrize("room", [0, 1, 100, 250])
def test_a_full_disk_leaves_whole_batches_and_is_an_output_error(path, monkeypatch, room):
    sink = JournalSink(path)
    sink.begin(SETTINGS)
    sink.write([row(1)])
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk(room))
        with pytest.raises(OutputError, match=r"No space left on device. Its rows so far are safe"):
            sink.write([row(2), row(3)])
    sink.close()
    assert path.read_bytes() == whole
    write(path, row(2), row(3))
    assert [columns["file_name"] for columns in columns_of(path)] == ["1.jpg", "2.jpg", "3.jpg"]


def test_a_full_disk_where_nothing_can_be_cut_leaves_a_torn_tail_for_the_next_run(path, monkeypatch):
    sink = JournalSink(path)
    sink.begin(SETTINGS)
    sink.write([row(1)])

    def no_cut(file, length):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk(50))
        patch.setattr(os, "ftruncate", no_cut)
        with pytest.raises(OutputError, match="No space left"):
            sink.write([row(2)])
    sink.close()
    assert read_journal(path).torn_bytes == 50
    assert resume(path, [row(1), row(2)]) == [row(1)]
    assert [columns["file_name"] for columns in columns_of(path)] == ["1.jpg", "2.jpg"]


def test_short_writes_are_gone_on_with(path, monkeypatch):
    write_bytes = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write_bytes(file, bytes(data)[:7]))
    write(path, *ROWS)
    assert columns_of(path) == [one.as_dict() for one in ROWS]


def test_a_disk_that_loses_data_takes_the_batch_back(path, monkeypatch):
    def lost(file):
        raise OSError(errno.EIO, "Input/output error")

    write(path, row(1))
    whole = path.read_bytes()
    monkeypatch.setattr(sink_module, "_fdatasync", lost)
    with pytest.raises(OutputError, match="Input/output error"):
        write(path, row(2))
    assert path.read_bytes() == whole


def test_a_full_disk_at_the_beginning_is_an_output_error(path, monkeypatch):
    def no_room(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OutputError, match="No space left"):
        write(path, row(1))
    assert read_journal(path).finished == set()


def test_rows_are_whole_lines_and_safe_after_every_batch(path, monkeypatch):
    events = []
    write_bytes, sync = os.write, sink_module._fdatasync

    def noted_write(file, data):
        events.append("write")
        return write_bytes(file, data)

    def noted_sync(file):
        events.append("sync")
        sync(file)

    monkeypatch.setattr(os, "write", noted_write)
    monkeypatch.setattr(sink_module, "_fdatasync", noted_sync)
    sink = JournalSink(path)
    sink.begin(SETTINGS)
    for number in range(0, 6, 2):
        sink.write([row(number), row(number + 1)])
        assert events == ["write", "sync"]
        events.clear()
        assert [json.loads(line)["status"] for line in path.read_text().splitlines()] == ["ok"] * (number + 2)
    sink.close()


def test_no_row_is_ever_there_without_its_manifest(path, monkeypatch):
    seen = []
    write_bytes = os.write

    def watched(file, data):
        seen.append(manifest_path(path).exists())
        return write_bytes(file, data)

    monkeypatch.setattr(os, "write", watched)
    write(path, row(1))
    assert seen == [True]
