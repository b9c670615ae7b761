import errno
import json
from collections import Counter

import pytest

from blip2cap.errors import OutputError, OutputRefusedError
from blip2cap.outputs.existing_rows import manifest_path, read_journal
from blip2cap.outputs.files import OS_FILES, Files, OsFiles
from blip2cap.outputs.journal import JournalSink
from blip2cap.records import ImageRef
from blip2cap.rows import Row
from blip2cap.tasks.base import Worklist
from blip2cap.tasks.caption import Caption
from tests.files import Counting, FastFiles
from tests.rows import SETTINGS, columns_of, failed, row, write

ROWS = [row(1), failed(2), row(3, text="кот\u2028🐈"), row(4)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "captions.jsonl"


def resume(path, rows: list[Row], files: Files = OS_FILES) -> list[Row]:
    """Do the steps of a run: write the missing rows in two batches; return the existing ones."""
    sink = JournalSink(path, files=files)
    refs = [ImageRef(path=one.file_name, name=one.file_name) for one in rows]
    tasks = {task.ref.name for task in Worklist(Caption()).requests(refs, sink.finished)}
    missing = [one for one in rows if one.file_name in tasks]
    there = [one for one in rows if one.file_name not in tasks]
    sink.begin(SETTINGS)
    sink.write(missing[:2])
    sink.write(missing[2:])
    sink.close()
    return there


def test_a_journal_that_is_cut_at_any_byte_is_made_whole_again(path):
    rows = ROWS[:3]
    write(path, *rows)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        there = resume(path, rows, FastFiles())
        assert path.read_bytes() == whole, cut
        assert len(there) == whole[:cut].count(b"\n"), cut


def test_a_journal_that_is_cut_again_and_again_has_every_row_once(path):
    write(path, *ROWS)
    whole = path.read_bytes()
    for cut in range(len(whole), 0, -7):
        path.write_bytes(path.read_bytes()[:cut])
        resume(path, ROWS, FastFiles())
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


class FullDisk(OsFiles):
    """A disk with `room` bytes left; files on it can be truncated, unless it `cannot_cut`."""

    def __init__(self, room: int, *, cannot_cut: bool = False) -> None:
        self.room, self.cannot_cut = room, cannot_cut
        self.full = False

    def write(self, file: int, data: bytes | memoryview) -> int:
        """Write as much as fits."""
        if self.full and not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        if not self.full:
            return super().write(file, data)
        written = super().write(file, memoryview(data)[: self.room])
        self.room -= written
        return written

    def ftruncate(self, file: int, length: int) -> None:
        """Cut, or fail."""
        if self.full and self.cannot_cut:
            raise OSError(errno.EIO, "Input/output error")
        super().ftruncate(file, length)


@pytest.mark.parametrize("room", [0, 1, 100, 250])
def test_a_full_disk_leaves_whole_batches_and_is_an_output_error(path, room):
    files = FullDisk(room)
    sink = JournalSink(path, files=files)
    sink.begin(SETTINGS)
    sink.write([row(1)])
    whole = path.read_bytes()
    files.full = True
    with pytest.raises(OutputError, match=r"No space left on device. Its rows so far are safe"):
        sink.write([row(2), row(3)])
    sink.close()
    assert path.read_bytes() == whole
    write(path, row(2), row(3))
    assert [columns["file_name"] for columns in columns_of(path)] == ["1.jpg", "2.jpg", "3.jpg"]


def test_a_full_disk_where_nothing_can_be_cut_leaves_a_torn_tail_for_the_next_run(path):
    files = FullDisk(50, cannot_cut=True)
    sink = JournalSink(path, files=files)
    sink.begin(SETTINGS)
    sink.write([row(1)])
    files.full = True
    with pytest.raises(OutputError, match="No space left"):
        sink.write([row(2)])
    sink.close()
    assert read_journal(path).torn_bytes == 50
    assert resume(path, [row(1), row(2)]) == [row(1)]
    assert [columns["file_name"] for columns in columns_of(path)] == ["1.jpg", "2.jpg"]


def test_short_writes_are_gone_on_with(path):
    class Slow(OsFiles):
        def write(self, file: int, data: bytes | memoryview) -> int:
            return super().write(file, memoryview(data)[:7])

    resume(path, ROWS, Slow())
    assert columns_of(path) == [one.as_dict() for one in ROWS]


def test_a_disk_that_takes_nothing_is_an_output_error(path):
    class Stuck(OsFiles):
        def write(self, file: int, data: bytes | memoryview) -> int:
            return 0

    with pytest.raises(OutputError, match="a write of 0 bytes"):
        resume(path, ROWS, Stuck())


def test_a_disk_that_loses_data_takes_the_batch_back_and_is_not_asked_again(path):
    class Losing(OsFiles):
        asked = 0

        def fdatasync(self, file: int) -> None:
            self.asked += 1
            raise OSError(errno.EIO, "Input/output error")

    write(path, row(1))
    whole, files = path.read_bytes(), Losing()
    with pytest.raises(OutputError, match="Input/output error"):
        resume(path, ROWS, files)
    assert path.read_bytes() == whole
    assert files.asked == 1


def test_a_full_disk_at_the_beginning_is_an_output_error(path):
    class NoRoom(OsFiles):
        def fsync(self, file: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        resume(path, [row(1)], NoRoom())
    assert read_journal(path).finished == set()


def test_rows_are_whole_lines_and_safe_after_every_batch(path):
    files = Counting()
    sink = JournalSink(path, files=files)
    sink.begin(SETTINGS)
    for number in range(0, 6, 2):
        files.names.clear()
        sink.write([row(number), row(number + 1)])
        assert files.names == ["stat", "fstat", "write", "fdatasync"]
        assert [json.loads(line)["status"] for line in path.read_text().splitlines()] == ["ok"] * (number + 2)
    sink.close()


def test_no_row_is_ever_there_without_its_manifest(path):
    seen = []

    class Watching(OsFiles):
        def fdatasync(self, file: int) -> None:
            seen.append(manifest_path(path).exists())
            super().fdatasync(file)

    resume(path, [row(1)], Watching())
    assert seen == [True, True]


@pytest.mark.parametrize("replaced", [False, True])
def test_an_output_that_loses_its_name_under_way_is_an_output_error(path, replaced):
    sink = JournalSink(path)
    sink.begin(SETTINGS)
    sink.write([row(1)])
    path.unlink()
    if replaced:
        path.write_bytes(b"something else")
    for step in (lambda: sink.write([row(2)]), sink.finish):
        with pytest.raises(OutputError, match=r"was removed or replaced while it was being written.*Run the same"):
            step()
    sink.close()
    assert path.exists() == replaced
