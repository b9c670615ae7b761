"""Folders of objects: complete or absent, one winner, errors that say what to do."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from blip2cap.errors import OutputError, UsageError
from blip2cap.outputs.parts.bucket import RemoteStore
from blip2cap.outputs.parts.store import LocalStore, Store, open_store, temporary
from tests.buckets import s3_server
from tests.full_disk import files_of_at_most

NAME = "part-00000.parquet"


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "s3":
        with s3_server(monkeypatch, tmp_path) as url:
            yield prepared(f"{url}captions/")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        name = "captions" if request.param == "folder" else tmp_path.name
        yield prepared(f"{tmp_path}/{name}/" if request.param == "folder" else f"memory://{name}/captions/")


def prepared(url: str) -> Store:
    store = open_store(url)
    store.prepare()
    return store


def content(store: Store, name: str = NAME) -> bytes:
    with store.open(name) as file:
        return file.read()


def test_an_object_is_created_once(store: Store) -> None:
    assert store.names() - {".blip2cap"} == set()
    assert not store.exists(NAME)
    assert store.create(NAME, b"first")
    assert not store.create(NAME, b"second")
    assert store.exists(NAME)
    assert store.names() - {".blip2cap"} == {NAME}
    assert content(store) == b"first"


def test_a_file_is_stored_once(store: Store) -> None:
    for number, won in ((1, True), (2, False)):
        path = store.scratch / f"tmp-{number}"
        path.write_bytes(b"%d" % number)
        assert store.create_from(".blip2cap/plan", path) == won
        path.unlink()
    assert content(store, ".blip2cap/plan") == b"1"
    assert store.names() == {".blip2cap"}


def test_an_object_is_replaced(store: Store) -> None:
    store.create(NAME, b"old")
    store.replace(NAME, b"new")
    assert content(store) == b"new"


def test_what_is_not_there_cannot_be_opened(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.open(NAME).read()


@pytest.mark.parametrize("store", ["folder", "s3"], indirect=True)  # memory:// has no check of its own
def test_of_six_writers_of_one_name_one_wins_and_its_object_is_whole(store: Store) -> None:
    start, won = threading.Barrier(6), []

    def write(number: int) -> None:
        start.wait()
        if store.create(NAME, bytes([number]) * 200_000):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = won
    assert content(store) == bytes([winner]) * 200_000


@pytest.mark.slow
def test_of_six_processes_one_wins(tmp_path: Path) -> None:
    code = (
        "import sys; from blip2cap.outputs.parts.store import LocalStore;"
        "store = LocalStore(sys.argv[1]); store.prepare();"
        f"sys.stdin.read(); print(store.create('{NAME}', sys.argv[2].encode() * 100_000))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "captions")]
    processes = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for number in range(6)
    ]
    for process in processes:
        assert process.stdin
        process.stdin.close()
    answers = [process.stdout.read().strip() for process in processes if process.stdout]
    for process in processes:
        assert process.wait() == 0
        assert process.stdout
        process.stdout.close()
    winner = answers.index(b"True")
    assert answers.count(b"True") == 1
    assert (tmp_path / "captions" / NAME).read_bytes() == str(winner).encode() * 100_000


@pytest.mark.slow
@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_writer_that_is_killed_leaves_no_object_of_that_name(tmp_path: Path, call: str) -> None:
    code = (
        "import os, signal, sys; from blip2cap.outputs.parts.store import LocalStore; store = LocalStore(sys.argv[1]);"
        f"store.prepare(); os.{call} = lambda *args: os.kill(os.getpid(), signal.SIGKILL); store.create('{NAME}', b'x')"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], check=False)
    assert killed.returncode == -signal.SIGKILL
    store = LocalStore(str(tmp_path / "c"))
    assert store.names() == {".blip2cap"}
    (leftover,) = store.scratch.iterdir()
    assert leftover.suffix != ".parquet"
    assert store.create(NAME, b"whole")
    with temporary(store.scratch) as written:
        store.prepare()
        assert written.exists()  # its process lives
    assert not leftover.exists()


@pytest.mark.long
def test_an_upload_that_is_killed_leaves_no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import os, signal, sys, s3fs
from blip2cap.outputs.parts.store import open_store
call = s3fs.S3FileSystem._call_s3
async def killed(self, method, *args, **kwargs):
    if method == "complete_multipart_upload":
        os.kill(os.getpid(), signal.SIGKILL)
    return await call(self, method, *args, **kwargs)
s3fs.S3FileSystem._call_s3 = killed
store = open_store(sys.argv[1])
store.prepare()
store.create("part-00000.parquet", bytes(110 << 20))
"""
    with s3_server(monkeypatch, tmp_path) as url:
        killed = subprocess.run([sys.executable, "-c", code, f"{url}captions/"], check=False)
        assert killed.returncode == -signal.SIGKILL
        store = prepared(f"{url}captions/")
        assert store.names() == set()
        assert store.create(NAME, b"whole")


def test_new_files_have_the_rights_that_the_user_wants(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "c"))
    store.prepare()
    before = os.umask(0o027)
    try:
        store.create(NAME, b"")
    finally:
        os.umask(before)
    assert (tmp_path / "c" / NAME).stat().st_mode & 0o777 == 0o640


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "c"))
    store.prepare()
    refused = pytest.raises(OutputError, match=r"cannot be used: File too large\. Existing parts are safe")
    with files_of_at_most(1000), refused:
        store.create(NAME, bytes(5000))
    assert store.names() == {".blip2cap"}
    assert list(store.scratch.iterdir()) == []


@pytest.mark.parametrize("path", ["captions", "captions/"])
def test_a_name_below_a_folder_is_said_with_one_stroke(path: str) -> None:
    assert LocalStore(path).url == "captions/"


def test_a_folder_without_the_one_above_it_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Create its parent folder first"):
        LocalStore(str(tmp_path / "a" / "b")).prepare()


def test_a_disk_without_hard_links_is_said_not_worked_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    store = LocalStore(str(tmp_path / "c"))
    store.prepare()
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OutputError, match="free space, locks and hard links"):
        store.create(NAME, b"")


@pytest.mark.parametrize("url", ["ftp://host/captions/", "file:///tmp/captions/", "hdfs://host/captions/"])
def test_a_protocol_of_which_nothing_is_known_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="Use s3://, gs:// or a local folder"):
        open_store(url)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=r"Install blip2cap\[remote\]"):
        open_store("gs://bucket/captions/")


def test_a_bucket_that_is_not_there_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch, tmp_path), pytest.raises(OutputError, match="The specified bucket does not exist"):
        prepared("s3://nobody/captions/").create(NAME, b"")


def test_a_cache_that_cannot_be_made_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="set XDG_CACHE_HOME"):
        prepared("memory://anything/")


def s3_error(code: str) -> OSError:
    """Make what s3fs raises: the code is in the cause only."""
    error, cause = OSError(errno.EIO, code), Exception(code)
    cause.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("answers", "won"),
    [
        ([None], True),
        ([FileExistsError()], False),
        ([s3_error("PreconditionFailed")], False),
        ([s3_error("ConditionalRequestConflict"), None], True),
        ([s3_error("ConditionalRequestConflict"), s3_error("PreconditionFailed")], False),
    ],
)
def test_a_conflict_is_tried_again_until_it_is_known_who_won(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: list[OSError | None], won: bool
) -> None:
    store, left = with_answers(monkeypatch, tmp_path, answers)
    assert store.create(NAME, b"") == won
    assert left == []


def test_a_conflict_without_end_and_other_errors_are_output_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, _ = with_answers(monkeypatch, tmp_path, [s3_error("ConditionalRequestConflict")] * 8)
    with pytest.raises(OutputError, match="ConditionalRequestConflict"):
        store.create(NAME, b"")
    store, left = with_answers(monkeypatch, tmp_path, [PermissionError("denied"), None])
    with pytest.raises(OutputError, match="PermissionError: denied"):
        store.create(NAME, b"")
    assert left == [None]


def with_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: list[OSError | None]
) -> tuple[RemoteStore, list[OSError | None]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("blip2cap.outputs.parts.bucket._FIRST_PAUSE_S", 0.0)
    store, left = RemoteStore("memory://anything/"), list(answers)

    def put(path: str, data: bytes, mode: str) -> None:
        answer = left.pop(0)
        if answer is not None:
            raise answer

    pipe: Callable[..., None] = put
    store.files = SimpleNamespace(pipe_file=pipe)
    return store, left
