import os
import signal
import subprocess
import sys

import pytest

from blip2cap.errors import OutputError, OutputRefusedError
from blip2cap.outputs.existing_rows import manifest_path
from blip2cap.outputs.journal import JournalSink
from tests.rows import SETTINGS, columns_of, left_in, row, write

IMPORT = "import sys; from pathlib import Path; from blip2cap.outputs.journal import JournalSink"
OPEN = f"{IMPORT}; sink = JournalSink(Path(sys.argv[1]))"
OPEN_AND_WAIT = f"{OPEN}; print('open', flush=True); sys.stdin.read()"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "captions.jsonl"


def test_a_second_run_is_refused_while_the_first_is_open(path):
    first = JournalSink(path)
    for overwrite in (False, True):
        with pytest.raises(OutputRefusedError, match="is being written by another blip2cap run"):
            JournalSink(path, overwrite=overwrite)
    first.begin(SETTINGS)
    first.write([row(1)])
    first.close()
    assert columns_of(path) == [row(1).as_dict()]
    JournalSink(path).close()


def test_a_second_run_is_refused_through_a_link(path):
    link = path.with_name("link.jsonl")
    os.symlink(path.name, link)
    for first, second in ((path, link), (link, path)):
        sink = JournalSink(first)
        with pytest.raises(OutputRefusedError, match="is being written by another"):
            JournalSink(second)
        sink.close()


def test_another_process_is_refused(path):
    sink = JournalSink(path)
    other = subprocess.run([sys.executable, "-c", OPEN, path], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "OutputLockedError" in other.stderr
    assert "is being written by another blip2cap run" in other.stderr
    sink.close()


def test_a_killed_process_has_let_go_of_the_lock(path):
    with subprocess.Popen(
        [sys.executable, "-c", OPEN_AND_WAIT, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(OutputRefusedError):
            JournalSink(path)
        other.send_signal(signal.SIGKILL)
        other.wait()
    write(path, row(1))
    assert columns_of(path) == [row(1).as_dict()]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_opener_that_never_begins_leaves_nothing_behind(path, overwrite):
    JournalSink(path, overwrite=overwrite).close()
    assert left_in(path.parent) == []


def test_an_opener_that_never_begins_leaves_a_link_as_it_was(path):
    link = path.with_name("link.jsonl")
    os.symlink(path.name, link)
    JournalSink(link).close()
    assert left_in(path.parent) == ["link.jsonl"]
    assert os.readlink(link) == path.name


def test_an_opener_that_never_begins_keeps_what_was_there(path):
    write(path, row(1))
    before = (path.read_bytes(), manifest_path(path).read_bytes())
    JournalSink(path).close()
    assert (path.read_bytes(), manifest_path(path).read_bytes()) == before


def test_a_name_that_was_removed_between_open_and_lock_is_opened_anew(path, monkeypatch):
    """A run that ends before its first row removes its file: a lock on that file would protect nothing."""
    import fcntl

    lock = fcntl.flock
    opened: list[int] = []

    def locked_late(file, operation):
        if not opened:
            path.unlink()
        opened.append(file)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", locked_late)
    sink = JournalSink(path)
    sink.begin(SETTINGS)
    sink.write([row(1)])
    sink.close()
    assert len(opened) == 2
    assert columns_of(path) == [row(1).as_dict()]


def test_an_output_in_a_folder_that_is_missing_cannot_be_opened(path):
    with pytest.raises(OutputError, match=r"cannot be opened for writing: its folder does not exist"):
        JournalSink(path.parent / "gone" / "captions.jsonl")


def test_a_folder_cannot_be_opened_as_output(path):
    path.mkdir()
    with pytest.raises(OutputError, match=r"cannot be opened for writing: Is a directory"):
        JournalSink(path)


def test_an_output_that_cannot_be_opened_is_left_alone(path):
    path.mkdir()
    with pytest.raises(OutputError):
        JournalSink(path, overwrite=True)
    assert path.is_dir()
