from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from blip2cap.errors import OutputError
from blip2cap.outputs.files import OS_FILES, replaceable, replacing_stream, write_whole
from blip2cap.outputs.manifest import Manifest
from blip2cap.outputs.parquet import ParquetSink
from tests.commands import invoke
from tests.exports import names_in


def make_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(os.path.relpath(path))  # the path of a socket has about 100 bytes


def make_link(path: Path) -> None:
    os.mkfifo(path.with_name("target"))
    path.symlink_to("target")


def make_descriptor(path: Path) -> None:
    """Link as /dev/stdout does, when a shell has redirected it to a file."""
    kept = os.open(path.with_name("redirected"), os.O_WRONLY | os.O_CREAT)
    path.with_name("second").symlink_to(f"/proc/self/fd/{kept}")
    path.symlink_to("second")


OTHERS: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "socket": make_socket,
    "link": make_link,
    "descriptor": make_descriptor,
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
}


def described(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IFMT(path.lstat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize("kind", OTHERS)
def test_only_a_regular_file_is_replaced(here: Path, kind: str) -> None:
    OTHERS[kind](here / "out")
    before = described(here)
    with pytest.raises(OSError, match=r"regular file|directory|symbolic links") as caught:
        write_whole(OS_FILES, here / "out", b"new")
    assert caught.value.filename == str(here / "out")
    with (
        pytest.raises(OSError, match=r"regular file|directory|symbolic links"),
        replacing_stream(OS_FILES, here / "out"),
    ):
        pass
    with pytest.raises(OSError, match=r"regular file|directory|symbolic links"):
        Manifest(settings={}).write(here / "out")
    assert described(here) == before
    assert not [name for name in names_in(here) if (here / name).read_bytes()]


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_followed_and_stay(here: Path, exists: bool) -> None:
    (here / "far").mkdir()
    if exists:
        (here / "far/file").write_text("old")
        (here / "far/file").chmod(0o640)
    (here / "far/link").symlink_to("file")
    (here / "link").symlink_to("far/link")
    write_whole(OS_FILES, here / "link", b"new", unique=exists)
    assert ((here / "link").is_symlink(), (here / "far/link").is_symlink()) == (True, True)
    assert (here / "far/file").read_bytes() == b"new"
    assert names_in(here) == ["far/file", "far/link", "link"]
    status = replaceable(OS_FILES, here / "link")
    assert status is not None
    assert not exists or stat.S_IMODE(status.st_mode) == 0o640


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_parquet_output_is_a_regular_file(here: Path, overwrite: bool) -> None:
    os.mkfifo(here / "captions.parquet")
    with pytest.raises(OutputError, match=r"captions\.parquet cannot be written: not a regular file"):
        ParquetSink(here / "captions.parquet", overwrite=overwrite)
    assert [*described(here)] == ["captions.parquet"]


def test_a_benchmark_says_before_it_measures_that_its_file_cannot_be_replaced(here: Path) -> None:
    os.mkfifo(here / "bench.json")
    result = invoke("bench", "-o", "bench.json", "--model", "tiny")
    assert result.exit_code == 6
    assert "--out bench.json: cannot be written: not a regular file. Use another --out." in result.stderr
