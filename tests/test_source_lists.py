import io
import os
import sys

import pytest

from blip2cap.errors import InputError
from blip2cap.options import SourceOptions
from blip2cap.source.inputs import Source

pytestmark = pytest.mark.usefixtures("here")


def listed(content: bytes, **options) -> list[str]:
    source = Source(SourceOptions(inputs=("-",), **options), stdin=io.BytesIO(content))
    return [ref.name for ref in source]


def from_files(*files: str, **options) -> Source:
    return Source(SourceOptions(files_from=files, **options))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", []),
        (b"\n\n", []),
        (b"a.jpg\nb.jpg\n", ["a.jpg", "b.jpg"]),
        (b"a.jpg\nb.jpg", ["a.jpg", "b.jpg"]),
        (b"a.jpg\r\n\r\nb.jpg\r\n", ["a.jpg", "b.jpg"]),
        (b"  a b.jpg \n", ["  a b.jpg "]),
        (b"caf\xe9.jpg\n", [os.fsdecode(b"caf\xe9.jpg")]),
        (b"a.jpg\na\0b.jpg\n", ["a.jpg", "a\0b.jpg"]),
        (b"\xef\xbb\xbfa.jpg\r\nb.jpg\r\n", ["a.jpg", "b.jpg"]),
        ("a\u2028b.jpg\x85\n".encode(), ["a\u2028b.jpg\x85"]),
    ],
)
def test_standard_input_holds_one_path_a_line(content, names):
    assert listed(content) == names


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", []),
        (b"\0\0", []),
        (b"a.jpg\0b.jpg\0", ["a.jpg", "b.jpg"]),
        (b"a.jpg\0b.jpg", ["a.jpg", "b.jpg"]),
        (b"two\nlines\r.jpg\0b\r\0", ["two\nlines\r.jpg", "b\r"]),
    ],
)
def test_standard_input_holds_paths_that_end_with_nul(content, names):
    assert listed(content, null_separated=True) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.jpg\0b.jpg\0", "standard input: the first path holds NUL bytes.* Did you mean -0?"),
        (b"x" * 100_000 + b"\0b.jpg\0", "Did you mean -0?"),
        ("a.jpg\n".encode("utf-16"), "standard input: is UTF-16"),
    ],
)
def test_a_list_of_another_kind_is_refused_at_its_beginning(content, message):
    with pytest.raises(InputError, match=message):
        listed(content)


@pytest.mark.parametrize("null_separated", [False, True])
def test_a_long_list_is_put_together_again_from_its_blocks(null_separated):
    wanted = [f"folder/{number}-{'x' * (number % 200)}.jpg" for number in range(5_000)]
    end = "\0" if null_separated else "\n"
    assert listed("".join(name + end for name in wanted).encode(), null_separated=null_separated) == wanted


def test_the_first_path_of_a_slow_pipe_does_not_wait_for_the_second():
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as stdin, os.fdopen(write_end, "wb", buffering=0) as slow:
        refs = iter(Source(SourceOptions(inputs=("-",)), stdin=stdin))
        slow.write(b"a.jpg\nb.j")
        assert next(refs).name == "a.jpg"
        slow.write(b"pg\n")
        assert next(refs).name == "b.jpg"


def test_paths_in_a_list_need_not_exist_and_are_read_where_they_say():
    (ref,) = Source(SourceOptions(inputs=("-",)), stdin=io.BytesIO(b"pets/gone.jpg\n"))
    assert (ref.path, ref.name) == ("pets/gone.jpg", "pets/gone.jpg")


def test_doubled_paths_are_taken_once_and_counted():
    source = Source(SourceOptions(inputs=("-",)), stdin=io.BytesIO(b"a.jpg\nb.jpg\na.jpg\n")).stream()
    assert [ref.name for ref in source] == ["a.jpg", "b.jpg"]
    assert source.skipped == {"duplicate": 1}


def test_a_limit_holds_for_lists_too():
    assert listed(b"a.jpg\nb.jpg\nc.jpg\n", limit=2) == ["a.jpg", "b.jpg"]


def test_lists_come_from_files_too(here):
    (here / "one.txt").write_bytes(b"a.jpg\nb.jpg\n")
    (here / "two.txt").write_bytes(b"b.jpg\nc.jpg")
    source = from_files("one.txt", "two.txt")
    stream = source.stream()
    assert [ref.name for ref in stream] == ["a.jpg", "b.jpg", "c.jpg"]
    assert stream.skipped == {"duplicate": 1}
    assert [ref.name for ref in source.stream()] == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_list_file_may_end_its_paths_with_nul(here):
    (here / "list").write_bytes(b"a\n.jpg\0b.jpg\0")
    assert [ref.name for ref in from_files("list", null_separated=True)] == ["a\n.jpg", "b.jpg"]


def test_inputs_come_before_lists_and_keep_their_names_as_given(here):
    (here / "imgs").mkdir()
    (here / "imgs/a.jpg").touch()
    (here / "list").write_bytes(b"b.jpg\n")
    source = Source(SourceOptions(inputs=("imgs", "-"), files_from=("list",)), stdin=io.BytesIO(b"c.jpg\n"))
    assert [ref.name for ref in source] == ["imgs/a.jpg", "c.jpg", "b.jpg"]
    assert source.root == os.path.realpath(here)


def test_a_list_may_be_read_from_standard_input():
    source = Source(SourceOptions(files_from=("-",)), stdin=io.BytesIO(b"a.jpg\n"))
    assert [ref.name for ref in source] == ["a.jpg"]


def test_a_list_file_that_does_not_exist_is_refused_at_once():
    with pytest.raises(InputError, match=r"gone.txt: no such file"):
        from_files("gone.txt")


def test_a_folder_is_refused_as_a_list(here):
    (here / "imgs").mkdir()
    with pytest.raises(InputError, match=r"files_from imgs: a folder"):
        from_files("imgs")


def test_a_list_file_that_goes_away_is_an_input_error(here):
    (here / "list").touch()
    source = from_files("list")
    (here / "list").unlink()
    with pytest.raises(InputError, match=r"files_from list: cannot be read: No such file"):
        list(source)


def test_what_is_read_from_a_pipe_cannot_be_read_again(here):
    (here / "list").touch()
    os.mkfifo("pipe")
    assert from_files("list").repeatable
    assert not from_files("list", "pipe").repeatable
    assert not from_files("-").repeatable
    assert not Source(SourceOptions(inputs=("-",))).repeatable


@pytest.mark.parametrize("options", [{"inputs": ("-",)}, {"files_from": ("-",)}])
def test_a_closed_standard_input_is_refused_before_anything_is_read(monkeypatch, options):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        Source(SourceOptions(**options))
