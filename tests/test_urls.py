from __future__ import annotations

import errno
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from blip2cap.decode import http
from blip2cap.decode.read import read
from blip2cap.errors import ImageError, InputError
from blip2cap.options import DecodeOptions, SourceOptions
from blip2cap.records import ImageRef
from blip2cap.source.inputs import Source
from tests.archives import make_tar
from tests.commands import TINY, invoke, names_below, read_rows

pytestmark = pytest.mark.usefixtures("here")
OPTIONS = DecodeOptions(allow_http=True, max_bytes=10_000)


@pytest.fixture
def bucket() -> Iterator[Callable[[str, bytes], None]]:
    """Put objects into a bucket in memory."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield MemoryFileSystem().pipe_file
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def source(*inputs: str, **options) -> Source:
    return Source(SourceOptions(inputs=inputs, **options))


def content(ref: ImageRef) -> bytes | str:
    try:
        return read(ref, OPTIONS)
    except ImageError as error:
        return error.code


def contents(images: Iterable[ImageRef]) -> dict[str, bytes | str]:
    return {ref.name: content(ref) for ref in images}


def test_a_remote_folder_is_walked_like_a_local_one(bucket):
    names = ["b.jpg", "B.jpg", "a/z.jpg", "a/y/x.PNG", "a.jpg", "a-b.jpg", "é.jpg", ".a.jpg", ".git/b.jpg", "c.txt"]
    for name in names:
        bucket(f"/bucket/imgs/{name}", name.encode())
    images = source("memory://bucket/imgs/")
    stream = images.stream()
    expected = ["B.jpg", "a/y/x.PNG", "a/z.jpg", "a-b.jpg", "a.jpg", "b.jpg", "é.jpg"]
    assert list(contents(stream).items()) == [(name, name.encode()) for name in expected]
    assert stream.skipped == {"hidden": 2, "other_suffix": 1}
    assert images.root == "memory://bucket/imgs"
    assert not images.repeatable


def test_what_reads_remote_inputs_is_imported_only_for_them(here):
    code = "import sys, blip2cap.source.inputs, blip2cap.decode.read; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "blip2cap.urls" in imported
    assert not {"pyarrow", "fsspec", "aiohttp", "asyncio", "concurrent.futures"} & {*imported}


def test_several_remote_inputs_keep_their_names_as_given(bucket):
    for name in ("imgs/a.jpg", "more/b.jpg", "c.scan"):
        bucket(f"/bucket/{name}", b"x")
    images = source(
        "memory://bucket/imgs", "memory://bucket/more/", "memory://bucket/c.scan", "memory://bucket/imgs"
    ).stream()
    assert list(contents(images)) == [f"memory://bucket/{name}" for name in ("imgs/a.jpg", "more/b.jpg", "c.scan")]
    assert images.skipped == {"duplicate": 1}


def test_a_folder_that_cannot_be_listed_is_counted_and_the_walk_goes_on(bucket, monkeypatch):
    bucket("/b/closed/x.jpg", b"x")
    bucket("/b/open/y.jpg", b"y")
    ls = MemoryFileSystem.ls

    def guarded(self, path, **settings):
        if path.endswith("closed"):
            raise PermissionError
        return ls(self, path, **settings)

    monkeypatch.setattr(MemoryFileSystem, "ls", guarded)
    images = source("memory://b").stream()
    assert contents(images) == {"open/y.jpg": b"y"}
    assert images.skipped == {"unreadable_folder": 1}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_remote_tar_is_streamed(bucket, mode):
    members = {"a.jpg": b"one", "notes.txt": bytes(100_000), "b/c.jpg": b"two"}
    bucket("/b/x.tar", make_tar(Path("x.tar"), members, mode).read_bytes())
    images = source("memory://b/x.tar").stream()
    assert contents(images) == {"memory://b/x.tar#a.jpg": b"one", "memory://b/x.tar#b/c.jpg": b"two"}
    assert images.skipped == {"other_suffix": 1}


def test_a_remote_tar_that_is_none_is_counted_and_told(bucket):
    bucket("/b/x.tar", b"hello")
    images = source("memory://b/x.tar").stream()
    assert contents(images) == {}
    assert images.skipped == {"unreadable_archive": 1}
    assert images.damaged[0].startswith("memory://b/x.tar: not read to its end: ")


def test_a_remote_table_is_read_where_it_is(bucket):
    pq.write_table(pa.table({"image": [b"one", b"two"]}), "x.parquet")
    bucket("/b/x.parquet", Path("x.parquet").read_bytes())
    assert contents(source("memory://b/x.parquet")) == {
        "memory://b/x.parquet#0": b"one",
        "memory://b/x.parquet#1": b"two",
    }


def test_remote_shards_are_written_with_braces_and_a_missing_one_is_named(bucket):
    for number in range(3):
        bucket(f"/b/{number:02}.tar", make_tar(Path("x.tar"), {"a.jpg": b"x"}).read_bytes())
    assert len(contents(source("memory://b/{00..02}.tar"))) == 3
    with pytest.raises(InputError, match=r"memory://b/03.tar: no such object"):
        source("memory://b/{00..03}.tar")


def test_lines_of_a_list_may_be_urls(bucket, monkeypatch):
    monkeypatch.setattr(http, "PAUSES_S", (0.0,))
    bucket("/b/a.jpg", b"x")
    Path("list").write_text(
        "memory://b/a.jpg\nmemory://b/gone.jpg\nhttp://user:secret@127.0.0.1:1/x.jpg\nftp://x/y.jpg\n"
    )
    images = Source(SourceOptions(files_from=("list",)))
    assert contents(images) == {
        "memory://b/a.jpg": b"x",
        "memory://b/gone.jpg": "vanished",
        "http://127.0.0.1:1/x.jpg": "unreachable",
        "ftp://x/y.jpg": "unsupported",
    }


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("memory://b/gone/", r"memory://b/gone/: no such object, and no folder"),
        ("ftp://x/y", r"ftp:// is not supported. Expected s3://"),
        ("file:///etc", r"file:// is not supported"),
        ("gs://b/x", r"needs a back end. Run: pip install \"blip2cap\[remote\]\""),
        ("abfs://b/x", r"needs a back end. Run: pip install adlfs"),
        ("https://x.org/a.tar", r"only images are read from web servers"),
        ("zip::s3://b/x", r"no such file or folder"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused_at_once(bucket, monkeypatch, given, reason):
    filesystem = fsspec.filesystem

    def without_back_ends(name, **settings):
        if name in ("gs", "abfs"):
            raise ImportError(name)
        return filesystem(name, **settings)

    monkeypatch.setattr(fsspec, "filesystem", without_back_ends)
    with pytest.raises(InputError, match=reason):
        source(given)


class NoCredentialsError(Exception):
    """The error of botocore with this name."""


class ConnectTimeoutError(Exception):
    """The error of botocore with this name."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError("x"), "vanished"),
        (PermissionError("Forbidden"), "permission"),
        (NoCredentialsError("no credentials"), "permission"),
        (TimeoutError(), "timeout"),
        (fsspec.exceptions.FSTimeoutError(), "timeout"),
        (ConnectTimeoutError("x"), "unreachable"),
        (ConnectionRefusedError("x"), "unreachable"),
        (OSError(errno.EBUSY, "Please reduce your request rate"), "unreachable"),
        (OSError("reset by peer"), "unreadable"),
        (RuntimeError("https://user:secret@x.org/?X-Amz-Signature=secret"), "unreadable"),
    ],
    ids=repr,
)
def test_what_a_back_end_raises_becomes_a_code(bucket, monkeypatch, error, code):
    def broken(self, path, **settings):
        raise error

    bucket("/b/a.jpg", b"x")
    (ref,) = source("memory://b")
    monkeypatch.setattr(MemoryFileSystem, "cat_file", broken)
    with pytest.raises(ImageError) as caught:
        read(ref, OPTIONS)
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


def test_a_large_object_is_not_read(bucket, monkeypatch):
    bucket("/b/a.jpg", bytes(10_001))
    monkeypatch.setattr(MemoryFileSystem, "cat_file", None)
    assert contents(source("memory://b")) == {"a.jpg": "too_large"}
    assert content(ImageRef(path="memory://b/a.jpg", name="x")) == "too_large"


def test_a_remote_folder_is_captioned_and_resumed_and_another_is_refused(bucket, scenes, here):
    for name in names_below(scenes):
        bucket(f"/b/imgs/{name}", (scenes / name).read_bytes())
    bucket("/b/other/x.png", b"x")
    for arguments in (["--limit", "2"], []):
        assert invoke("caption", "memory://b/imgs", *TINY, *arguments).exit_code == 0
    assert [row["file_name"] for row in read_rows(here / "captions.jsonl")] == names_below(scenes)
    refused = invoke("caption", "memory://b/other", *TINY)
    assert refused.exit_code == 5
    assert 'the input root was "memory://b/imgs", now "memory://b/other"' in refused.stderr


def test_a_remote_folder_of_a_plan_may_be_written_with_a_slash_or_without(bucket, scenes, here):
    for name in names_below(scenes):
        bucket(f"/b/imgs/{name}", (scenes / name).read_bytes())
    flags = (*TINY, "-o", "captions/")
    assert invoke("caption", "memory://b/imgs", *flags).exit_code == 0
    assert invoke("caption", "memory://b/imgs/", *flags).exit_code == 0
    assert invoke("caption", "memory://b", *flags).exit_code == 5


@pytest.fixture
def s3(monkeypatch) -> Iterator[fsspec.AbstractFileSystem]:
    """An S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    system = fsspec.filesystem("s3", use_listings_cache=False)
    system.mkdir("bucket")
    yield system
    type(system).clear_instance_cache()
    moto.stop()


def test_a_bucket_is_walked_and_read(s3):
    objects = {"b.jpg": b"b", "a/z.jpg": b"z", "a.jpg": b"", "a/.hidden.jpg": b"x", "c.txt": b"x", "d e#f?.jpg": b"odd"}
    for name, data in objects.items():
        s3.pipe_file(f"bucket/imgs/{name}", data)
    s3.pipe_file("bucket/x.tar", make_tar(Path("x.tar"), {"a.jpg": b"x"}).read_bytes())
    images = source("s3://bucket/imgs/").stream()
    assert contents(images) == {"a/z.jpg": b"z", "a.jpg": b"", "b.jpg": b"b", "d e#f?.jpg": b"odd"}
    assert images.skipped == {"hidden": 1, "other_suffix": 1}
    assert contents(source("s3://bucket/x.tar", "s3://bucket/imgs/b.jpg")) == {
        "s3://bucket/x.tar#a.jpg": b"x",
        "s3://bucket/imgs/b.jpg": b"b",
    }
    assert content(ImageRef(path="s3://bucket/gone.jpg", name="x")) == "vanished"
    with pytest.raises(InputError, match="s3://nowhere/x: no such object"):
        source("s3://nowhere/x")
