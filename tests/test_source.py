import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from blip2cap.errors import InputError
from blip2cap.options import SourceOptions
from blip2cap.records import ImageRef
from blip2cap.source.inputs import Source
from blip2cap.source.walk import IMAGE_SUFFIXES
from tests.commands import invoke


def touch(*names: str | bytes) -> None:
    for name in map(os.fsencode, names):
        os.makedirs(os.path.dirname(name) or b".", exist_ok=True)
        open(name, "wb").close()


def names(images: Iterable[ImageRef]) -> list[str]:
    return [ref.name for ref in images]


def source(*inputs: str, **options) -> Source:
    return Source(SourceOptions(inputs=inputs, **options))


def test_a_folder_is_walked_in_the_order_of_bytes_level_by_level(here):
    touch("imgs/b.jpg", "imgs/B.jpg", "imgs/a/z.jpg", "imgs/a/y/x.jpg", "imgs/a.jpg", "imgs/é.jpg", "imgs/a-b.jpg")
    assert names(source("imgs")) == ["B.jpg", "a/y/x.jpg", "a/z.jpg", "a-b.jpg", "a.jpg", "b.jpg", "é.jpg"]


def test_names_are_relative_to_the_one_folder_and_paths_can_be_opened(here):
    touch("imgs/pets/cat.jpg")
    for given in ("imgs", "imgs/", "./imgs", str(here / "imgs")):
        (ref,) = source(given)
        assert ref.name == "pets/cat.jpg"
        assert os.path.samefile(ref.path, "imgs/pets/cat.jpg")


def test_the_root_of_one_folder_is_the_folder_itself_without_links(here):
    touch("imgs/cat.jpg")
    os.symlink("imgs", "link")
    assert source("link").root == source("imgs/").root == os.path.realpath("imgs")


def test_the_root_of_anything_else_is_the_current_folder(here):
    touch("imgs/cat.jpg", "more/dog.jpg")
    for inputs in (("imgs", "more"), ("imgs/cat.jpg",), ("-",)):
        assert source(*inputs).root == os.path.realpath(here)


def test_several_inputs_keep_their_names_as_given(here):
    touch("imgs/cat.jpg", "more/pets/dog.jpg", "fish.jpg")
    given = (f"{here}/imgs", "more/", "./fish.jpg")
    assert names(source(*given)) == [f"{here}/imgs/cat.jpg", "more/pets/dog.jpg", "./fish.jpg"]


def test_a_file_that_is_named_is_taken_whatever_its_suffix(here):
    touch("scan", ".hidden.txt")
    assert names(source("scan", ".hidden.txt")) == ["scan", ".hidden.txt"]


def test_hidden_files_and_folders_are_passed_over_and_counted(here):
    touch("imgs/.a.jpg", "imgs/.git/b.jpg", "imgs/.git/c.jpg", "imgs/d.jpg")
    images = source("imgs").stream()
    assert names(images) == ["d.jpg"]
    assert images.skipped == {"hidden": 2}


def test_other_suffixes_are_passed_over_and_counted(here):
    touch("imgs/a.txt", "imgs/b", "imgs/c.jpg.part", "imgs/d.pdf", "imgs/e.JPG")
    images = source("imgs").stream()
    assert names(images) == ["e.JPG"]
    assert images.skipped == {"other_suffix": 4}


def test_folders_that_devices_create_are_passed_over_and_counted_unless_they_are_given(here):
    touch("imgs/@eaDir/a.jpg/thumb.jpg", "imgs/b/__MACOSX/c.jpg", "imgs/#recycle/d.jpg", "imgs/e.jpg")
    for ordered in (True, False):
        images = source("imgs").stream(ordered=ordered)
        assert names(images) == ["e.jpg"]
        assert images.skipped == {"system_folder": 3}
    assert names(source("imgs/#recycle").stream()) == ["d.jpg"]


def test_archives_and_tables_in_a_folder_are_counted_and_it_is_said_how_to_give_them(here):
    touch("shards/0.tar", "shards/1.TAR.GZ", "shards/2.parquet", "shards/3.txt")
    images = source("shards").stream()
    assert names(images) == []
    assert images.skipped == {"archive": 3, "other_suffix": 1}
    result = invoke("caption", "shards/", "--model", "tiny")
    assert result.exit_code == 2
    assert "(skipped 3 archive, skipped 1 other suffix). Archives and tables in a folder are not" in result.stderr
    assert 'give them by name, e.g. "shards/{000..099}.tar" or shards/*.tar' in result.stderr


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_of_an_image_is_taken_in_any_case(here, suffix):
    touch(f"imgs/a{suffix}", f"imgs/b{suffix.upper()}")
    assert names(source("imgs")) == [f"a{suffix}", f"b{suffix.upper()}"]


def test_links_to_files_and_folders_are_followed(here):
    touch("imgs/a.jpg", "elsewhere/b.jpg")
    os.symlink("a.jpg", "imgs/link.jpg")
    os.symlink("../elsewhere", "imgs/folder")
    assert names(source("imgs")) == ["a.jpg", "folder/b.jpg", "link.jpg"]


def test_a_broken_link_is_yielded_so_that_it_gets_its_row(here):
    touch("imgs/a.jpg")
    os.symlink("gone.jpg", "imgs/broken.jpg")
    os.symlink("round.jpg", "imgs/round.jpg")
    assert names(source("imgs")) == ["a.jpg", "broken.jpg", "round.jpg"]


def test_a_loop_of_links_ends_and_is_counted(here):
    touch("imgs/pets/a.jpg")
    os.symlink("..", "imgs/pets/up")
    os.symlink(".", "imgs/pets/self")
    images = source("imgs").stream()
    assert names(images) == ["pets/a.jpg"]
    assert images.skipped == {"link_loop": 2}


def test_two_links_to_one_folder_are_no_loop(here):
    touch("imgs/a/x.jpg")
    os.symlink("a", "imgs/b")
    assert names(source("imgs")) == ["a/x.jpg", "b/x.jpg"]


def test_a_folder_that_cannot_be_listed_is_counted_and_the_walk_goes_on(here, monkeypatch):
    touch("imgs/a/x.jpg", "imgs/b/y.jpg")
    scandir = os.scandir

    def guarded(path):
        if path == b"imgs/a/":
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    images = source("imgs").stream()
    assert names(images) == ["b/y.jpg"]
    assert images.skipped == {"unreadable_folder": 1}


def test_names_that_are_not_utf8_are_kept_byte_for_byte(here):
    touch(b"imgs/caf\xe9/\xff.jpg")
    (ref,) = source("imgs")
    assert os.fsencode(ref.name) == b"caf\xe9/\xff.jpg"
    assert os.path.exists(ref.path)


def test_names_with_newlines_are_walked_like_any_other(here):
    touch("imgs/two\nlines/a\n.jpg")
    (ref,) = source("imgs")
    assert ref.name == "two\nlines/a\n.jpg"
    assert os.path.exists(ref.path)


def test_overlapping_inputs_give_each_name_once(here):
    touch("imgs/a.jpg", "imgs/b.jpg")
    images = source("imgs", "imgs/a.jpg", "imgs").stream()
    assert names(images) == ["imgs/a.jpg", "imgs/b.jpg"]
    assert images.skipped == {"duplicate": 3}


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (2, 2), (3, 3), (4, 3)])
def test_a_limit_takes_the_first_images_only(here, limit, expected):
    touch("imgs/a.jpg", "imgs/b.jpg", "imgs/pets/c.jpg")
    assert names(source("imgs", limit=limit)) == ["a.jpg", "b.jpg", "pets/c.jpg"][:expected]


def test_a_walk_goes_no_further_than_it_is_asked(here, monkeypatch):
    touch("imgs/a/x.jpg", "imgs/b/y.jpg")
    listed = []
    scandir = os.scandir

    def noted(path):
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    assert next(iter(source("imgs"))).name == "a/x.jpg"
    assert listed == [b"imgs/", b"imgs/a/"]


def test_streams_of_one_source_are_independent_and_count_for_themselves(here):
    touch("imgs/a.jpg", "imgs/.b.jpg", "imgs/c.txt", "more/d.jpg")
    images = source("imgs", "more", "imgs")
    assert images.repeatable
    first, second = images.stream(), images.stream(ordered=False)
    assert next(first).name == next(second).name == "imgs/a.jpg"
    assert names(first) == ["more/d.jpg"]
    assert first.skipped == {"hidden": 2, "other_suffix": 2, "duplicate": 1}
    assert "duplicate" not in second.skipped
    assert names(second) == ["more/d.jpg"]
    assert second.skipped == first.skipped


def test_streams_of_one_source_may_run_in_several_threads_at_once(here):
    touch(*(f"imgs/{number % 7}/{number:03}.{'jpg' if number % 3 else 'txt'}" for number in range(300)))
    images = source("imgs", exclude=("*5.jpg",))
    streams = [images.stream(ordered=number % 2 == 0) for number in range(6)]
    with ThreadPoolExecutor(len(streams)) as pool:
        walks = list(pool.map(names, streams))
    alone = images.stream()
    expected = names(alone)
    assert walks[::2] == [expected] * 3
    assert [sorted(walk) for walk in walks] == [sorted(expected)] * 6
    assert [stream.skipped for stream in streams] == [alone.skipped] * 6
    assert alone.skipped == {"excluded": 20, "other_suffix": 100}


def test_a_dash_is_standard_input_even_beside_a_folder_of_that_name(here):
    touch("-/a.jpg")
    options = SourceOptions(inputs=("-",))
    assert names(Source(options, stdin=io.BytesIO(b"b.jpg\n"))) == ["b.jpg"]


@pytest.mark.parametrize("given", ["gone", "gone.jpg", "imgs/gone.jpg", ""])
def test_an_input_that_does_not_exist_is_refused_at_once(here, given):
    touch("imgs/a.jpg")
    with pytest.raises(InputError, match=r"no such file or folder. Paths are relative to /"):
        source("imgs", given)


def test_an_empty_folder_gives_no_image(here):
    os.mkdir("imgs")
    assert names(source("imgs")) == []
