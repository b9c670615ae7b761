"""Walking folders of any size and depth, with any content."""

import os
import socket
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from blip2cap.options import SourceOptions
from blip2cap.source.inputs import Source
from tests.commands import TINY, draw_scenes, invoke, read_rows
from tests.test_source import names, source, touch

_DEPTH = 1_200
"""Deeper than Python can recurse."""


@pytest.fixture
def deep(here):
    """Make a folder in a folder in a folder; removed here, as not even shutil.rmtree can."""
    path = f"{here}/imgs"
    os.mkdir(path)
    for _ in range(_DEPTH):
        path += "/d"
        os.mkdir(path)
    open(f"{path}/a.jpg", "wb").close()
    yield f"{'d/' * _DEPTH}a.jpg"
    os.unlink(f"{path}/a.jpg")
    for _ in range(_DEPTH):
        os.rmdir(path)
        path = path.removesuffix("/d")


def test_folders_may_lie_deeper_than_python_recurses(deep):
    images = source("imgs")
    streams = images.stream(), images.stream(ordered=False)
    assert [names(stream) for stream in streams] == [[deep], [deep]]
    assert [stream.skipped for stream in streams] == [{}, {}]


def test_a_link_up_from_the_depth_is_still_a_loop(here):
    path = "imgs"
    for _ in range(50):
        path += "/d"
    touch(f"{path}/a.jpg")
    os.symlink(os.path.abspath("imgs/d/d"), f"{path}/up")
    images = source("imgs").stream()
    assert names(images) == [f"{path.removeprefix('imgs/')}/a.jpg"]
    assert images.skipped == {"link_loop": 1}


def test_two_folders_that_link_to_each_other_end(here):
    touch("imgs/a/x.jpg", "imgs/b/y.jpg")
    os.symlink("../b", "imgs/a/other")
    os.symlink("../a", "imgs/b/other")
    images = source("imgs").stream()
    assert names(images) == ["a/other/y.jpg", "a/x.jpg", "b/other/x.jpg", "b/y.jpg"]
    assert images.skipped == {"link_loop": 2}


def test_any_order_has_the_same_images_and_counts_as_the_order_of_bytes(here):
    touch("imgs/b.jpg", "imgs/a/z.jpg", "imgs/a/.y.jpg", "imgs/c/d/x.txt", "imgs/c/w.png", "more/v.gif", "imgs/é.jpg")
    os.symlink("..", "imgs/a/up")
    for images in (source("imgs"), source("imgs", "more", "imgs/b.jpg", exclude=("c/d/",))):
        ordered, unordered = images.stream(), images.stream(ordered=False)
        assert sorted(names(unordered)) == sorted(names(ordered))
        assert unordered.skipped == ordered.skipped
        assert ordered.skipped.total() >= 3


def test_with_a_limit_it_is_the_first_images_that_are_counted(here):
    touch(*(f"imgs/{name}.jpg" for name in "qwertzuiop"))
    images = source("imgs", limit=3)
    assert names(images.stream(ordered=False)) == names(images) == ["e.jpg", "i.jpg", "o.jpg"]


def test_a_folder_that_cannot_be_listed_is_counted_in_any_order(here, monkeypatch):
    touch("imgs/a/x.jpg", "imgs/b/y.jpg")
    scandir = os.scandir

    def guarded(path):
        if path == b"imgs/a/":
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    images = source("imgs").stream(ordered=False)
    assert names(images) == ["b/y.jpg"]
    assert images.skipped == {"unreadable_folder": 1}


def test_a_folder_that_goes_while_it_is_walked_is_counted_and_the_walk_goes_on(here):
    touch("imgs/a.jpg", "imgs/b/c.jpg", "imgs/d.jpg")
    images = source("imgs").stream()
    assert next(images).name == "a.jpg"
    os.unlink("imgs/b/c.jpg")
    os.rmdir("imgs/b")
    assert names(images) == ["d.jpg"]
    assert images.skipped == {"unreadable_folder": 1}


def test_only_folders_are_looked_up_in_the_file_system(here, monkeypatch):
    touch("imgs/a.jpg", "imgs/b.jpg", "imgs/c.txt", "imgs/d/e.jpg")
    images = source("imgs")
    looked_up = []
    stat = os.stat

    def noted(path, **options):
        looked_up.append(path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", noted)
    assert len(list(images)) == 3
    assert looked_up == ["imgs/", "imgs/d/"]


def peak_of(images: Source, in_order: bool) -> int:
    """Walk; return the peak memory in bytes."""
    tracemalloc.start()
    try:
        for _ in images.stream(ordered=in_order):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> str:
    """A folder of 5,000 images."""
    path = tmp_path_factory.mktemp("large")
    for number in range(5_000):
        os.close(os.open(f"{path}/photo-{number:06}.jpg", os.O_CREAT | os.O_WRONLY))
    return str(path)


def test_a_large_folder_costs_no_more_than_its_names_and_counting_not_even_these(large, here):
    (here / "none").mkdir()
    nothing = peak_of(source("none"), in_order=True)
    assert (peak_of(source(large), in_order=True) - nothing) / 5_000 < 80  # 49 for each, 9 in a list
    assert peak_of(source(large), in_order=False) - nothing < 50_000


def test_while_a_large_folder_is_walked_its_names_take_little_more_than_their_letters(large):
    tracemalloc.start()
    try:
        refs = source(large).stream()
        assert next(refs).name == "photo-000000.jpg"
        assert tracemalloc.get_traced_memory()[0] / 5_000 < 25
    finally:
        tracemalloc.stop()
    assert sum(1 for _ in refs) == 4_999


def test_names_of_files_that_are_no_images_are_not_held(here):
    touch(*(f"imgs/photo-{number:06}.txt" for number in range(1_500)), "imgs/a.jpg")
    assert peak_of(source("imgs"), in_order=True) < 50_000


def test_what_is_no_regular_file_but_named_like_an_image_becomes_a_failed_row(here):
    draw_scenes(here / "imgs", 1)
    os.mkfifo("imgs/fifo.jpg")
    os.symlink("/dev/zero", "imgs/device.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("imgs/socket.jpg")
    os.mkfifo("imgs/fifo")
    result = invoke("caption", "imgs", *TINY)
    assert result.exit_code == 3
    rows = {row["file_name"]: (row["status"], row["error"]) for row in read_rows(here / "captions.jsonl")}
    assert rows == {
        "000.png": ("ok", ""),
        "device.jpg": ("failed", "not_regular"),
        "fifo.jpg": ("failed", "not_regular"),
        "socket.jpg": ("failed", "not_regular"),
    }
    assert "skipped 1 other suffix" in result.stderr


def test_names_that_steer_terminals_or_look_like_markup_are_rows_like_any_other(here):
    strange = [
        "[red]x[/red].jpg",
        "a\nb.jpg",
        "\x1b[31mred.jpg",
        "\u202egpj.exe.jpg",
        os.fsdecode(b"\xff\xfe.jpg"),
        "%s{0}.jpg",
    ]
    touch(*(f"imgs/{name}/{name}" for name in strange))
    result = invoke("caption", "imgs", *TINY)
    assert result.exit_code == 3
    rows = read_rows(here / "captions.jsonl")
    expected = sorted((f"{name}/{name}" for name in strange), key=os.fsencode)
    assert [row["file_name"] for row in rows] == [
        os.fsencode(name).decode("utf-8", "backslashreplace") for name in expected
    ]
    assert [row["file_name_b64"] != "" for row in rows] == ["\udcff" in name for name in expected]
    assert "[red]x[/red].jpg/[red]x[/red].jpg: truncated" in result.stderr
    assert not {"\x1b", "\u202e"} & set(result.stderr)


def test_the_prefix_of_a_folder_that_is_the_root_has_one_slash():
    from blip2cap.source.patterns import Patterns
    from blip2cap.source.walk import Walk

    walk = Walk("/", "/", Counter(), Patterns(SourceOptions(inputs=("/",))))
    assert (walk.folder, walk.prefix) == ("/", "/")
    assert Path(Walk("a//", "a/", Counter(), Patterns(SourceOptions(inputs=("a",)))).folder) == Path("a")
