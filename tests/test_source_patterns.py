"""--include and --exclude: the paths that remain, the counts of the others, and patterns that are refused."""

import builtins
import io
import os

import pytest

from blip2cap.errors import InputError, UsageError
from blip2cap.options import SourceOptions
from blip2cap.source.inputs import Source
from tests.commands import TINY, draw_scenes, invoke, read_rows
from tests.test_source import names, source, touch

FILES = ("a.jpg", "b.png", "drafts/c.jpg", "drafts/old/d.jpg", "pets/cat.jpg", "pets/drafts/dog.png")


@pytest.fixture
def imgs(here):
    """Make a folder with a few images in folders."""
    touch(*(f"imgs/{name}" for name in FILES))
    return "imgs"


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["*.png"], {"a.jpg", "drafts/c.jpg", "drafts/old/d.jpg", "pets/cat.jpg"}),
        (["drafts/"], {"a.jpg", "b.png", "pets/cat.jpg"}),
        (["/drafts/"], {"a.jpg", "b.png", "pets/cat.jpg", "pets/drafts/dog.png"}),
        (["drafts/old"], {"a.jpg", "b.png", "drafts/c.jpg", "pets/cat.jpg", "pets/drafts/dog.png"}),
        (["a.jpg", "b.*"], {"drafts/c.jpg", "drafts/old/d.jpg", "pets/cat.jpg", "pets/drafts/dog.png"}),
        (["*.jpg", "!cat.jpg"], {"b.png", "pets/cat.jpg", "pets/drafts/dog.png"}),
        (["pets/", "!cat.jpg"], {"a.jpg", "b.png", "drafts/c.jpg", "drafts/old/d.jpg"}),
        (["pets/**/dog.png"], {"a.jpg", "b.png", "drafts/c.jpg", "drafts/old/d.jpg", "pets/cat.jpg"}),
        (["[ab].*"], {"drafts/c.jpg", "drafts/old/d.jpg", "pets/cat.jpg", "pets/drafts/dog.png"}),
        (["*"], set()),
        (["*.JPG"], set(FILES)),
        (["imgs/"], set(FILES)),
    ],
)
def test_what_matches_is_excluded(imgs, patterns, left):
    assert set(names(source(imgs, exclude=tuple(patterns)))) == left


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["*.png"], {"b.png", "pets/drafts/dog.png"}),
        (["pets/"], {"pets/cat.jpg", "pets/drafts/dog.png"}),
        (["/*.jpg"], {"a.jpg"}),
        (["*.jpg", "!drafts/**"], {"a.jpg", "pets/cat.jpg"}),
        (["cat.jpg", "b.png"], {"b.png", "pets/cat.jpg"}),
        (["*.txt"], set()),
    ],
)
def test_only_what_matches_is_included(imgs, patterns, left):
    assert set(names(source(imgs, include=tuple(patterns)))) == left


def test_excluded_comes_before_included_and_both_are_counted(imgs):
    touch("imgs/notes.txt", "imgs/drafts/e.jpg")
    images = source(imgs, include=("*.jpg",), exclude=("drafts/", "a.*")).stream()
    assert names(images) == ["pets/cat.jpg"]
    assert images.skipped == {"excluded": 3, "not_included": 1, "other_suffix": 1}


def test_a_folder_that_is_excluded_is_not_entered(imgs, monkeypatch):
    listed = []
    scandir = os.scandir

    def noted(path):
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    list(source(imgs, exclude=("drafts/",)))
    assert listed == [b"imgs/", b"imgs/pets/"]


def test_including_does_not_make_an_image_of_another_suffix(here):
    touch("imgs/a.txt")
    images = source("imgs", include=("*.txt",)).stream()
    assert names(images) == []
    assert images.skipped == {"other_suffix": 1}


def test_of_several_folders_each_is_its_own_root_for_patterns(here):
    touch("one/a.jpg", "one/b/a.jpg", "two/a.jpg")
    images = source("one", "two", exclude=("/a.jpg",))
    assert names(images) == ["one/b/a.jpg"]


def test_paths_that_are_named_or_listed_are_matched_as_given(here):
    touch("imgs/a.jpg", "list.jpg")
    options = SourceOptions(inputs=("imgs/a.jpg", "./list.jpg", "-"), exclude=("imgs/",))
    images = Source(options, stdin=io.BytesIO(b"imgs/b.jpg\n/data/imgs/c.jpg\nd.jpg\n")).stream()
    assert names(images) == ["./list.jpg", "d.jpg"]
    assert images.skipped == {"excluded": 3}


def test_a_path_that_is_listed_counts_only_if_it_is_included(here):
    options = SourceOptions(inputs=("-",), include=("*.png",))
    images = Source(options, stdin=io.BytesIO(b"a.jpg\nb.png\n")).stream()
    assert names(images) == ["b.png"]
    assert images.skipped == {"not_included": 1}


def test_patterns_match_names_that_are_not_utf8_or_hold_line_ends(here):
    touch(b"imgs/caf\xe9.jpg", b"imgs/\xff/a.jpg", "imgs/x\ny/a\nb.png")
    assert names(source("imgs", include=("*.png",))) == ["x\ny/a\nb.png"]
    assert names(source("imgs", exclude=("caf*", "x*/**/*.png"))) == [os.fsdecode(b"\xff/a.jpg")]


@pytest.mark.parametrize("flag", ["include", "exclude"])
def test_an_empty_pattern_is_refused(flag):
    with pytest.raises(UsageError, match=f"{flag} is empty: expected a pattern"):
        source("imgs", **{flag: ("*.jpg", "")})


@pytest.mark.parametrize("pattern", ["  ", "#a.jpg", "/", "[z-a].jpg", "!", "a\\", "a\nb"])
@pytest.mark.parametrize("flag", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused_at_once(here, flag, pattern):
    touch("imgs/a.jpg")
    with pytest.raises(UsageError) as caught:
        source("imgs", **{flag: ("*.png", pattern)})
    assert caught.value.message.startswith(f"--{flag} {pattern}: ")


def test_taking_back_without_anything_to_take_back_from_is_refused(here):
    touch("imgs/a.jpg")
    with pytest.raises(UsageError, match=r"exclude !a.jpg: `!` re-includes what other patterns match"):
        source("imgs", exclude=("!a.jpg", "!b.jpg"))


def test_without_pathspec_patterns_are_refused_and_all_else_works(here, monkeypatch):
    touch("imgs/a.jpg")
    original = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "pathspec":
            raise ModuleNotFoundError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert names(source("imgs")) == ["a.jpg"]
    with pytest.raises(UsageError, match=r"include: pathspec is not installed. Run: pip install pathspec"):
        source("imgs", include=("*.jpg",))


@pytest.fixture
def drawn(here):
    """Draw three images, one of them in a folder, beside a file that is none."""
    draw_scenes(here / "imgs", 2)
    draw_scenes(here / "imgs/drafts", 1, first_seed=2)
    touch("imgs/notes.txt")
    return here


def test_the_summary_counts_what_was_passed_over_by_reason(drawn):
    result = invoke("caption", "imgs", *TINY, "--include", "*.png", "--exclude", "drafts/", "--exclude", "001.*")
    assert result.exit_code == 0
    assert "1 ok, 0 failed, " in result.stderr
    assert "skipped 2 excluded" in result.stderr
    assert "skipped 1 other suffix" in result.stderr
    assert [row["file_name"] for row in read_rows(drawn / "captions.jsonl")] == ["000.png"]


def test_a_dry_run_counts_the_same_in_words_and_as_json(drawn):
    command = ("caption", "imgs", *TINY, "--exclude", "drafts/", "--include", "000*", "--dry-run")
    assert "1 of 1 image to do, " in (said := invoke(*command).stderr)
    assert "skipped 1 not included" in said
    assert '"skipped": {' in (printed := invoke(*command, "--json").stdout)
    for count in ('"excluded": 1', '"not_included": 1', '"other_suffix": 1'):
        assert count in printed


def test_other_patterns_go_on_with_the_same_rows(drawn):
    assert invoke("caption", "imgs", *TINY, "--exclude", "drafts").exit_code == 0
    assert len(read_rows(drawn / "captions.jsonl")) == 2
    result = invoke("caption", "imgs", *TINY, "--include", "*.png")
    assert result.exit_code == 0
    assert "1 ok, 0 failed, 2 already done" in result.stderr
    assert len(read_rows(drawn / "captions.jsonl")) == 3


def test_questions_take_patterns_too(drawn):
    assert invoke("vqa", "imgs", *TINY, "-q", "what?", "--include", "drafts/").exit_code == 0
    assert [row["file_name"] for row in read_rows(drawn / "answers.jsonl")] == ["drafts/002.png"]


def test_patterns_may_come_from_the_config(drawn):
    (drawn / "blip2cap.toml").write_text('include = "*.png"\nexclude = ["drafts/", "000*"]\n')
    assert invoke("caption", "imgs", *TINY, "--config", "blip2cap.toml").exit_code == 0
    assert [row["file_name"] for row in read_rows(drawn / "captions.jsonl")] == ["001.png"]


def test_patterns_that_leave_nothing_are_named_in_the_error(drawn):
    result = invoke("caption", "imgs", *TINY, "--include", "*.jpg")
    assert result.exit_code == InputError.exit_code
    assert "no image found in imgs (skipped 3 not included, skipped 1 other suffix)" in result.stderr.replace(
        "skipped 1 other suffix, skipped 3 not included", "skipped 3 not included, skipped 1 other suffix"
    )
    assert "Check --include and --exclude" in result.stderr
    assert not (drawn / "captions.jsonl").exists()


def test_a_pattern_that_is_none_ends_with_2_before_anything_is_written(drawn):
    result = invoke("caption", "imgs", *TINY, "--exclude", "[z-a].jpg")
    assert result.exit_code == UsageError.exit_code
    assert "--exclude [z-a].jpg: not a pattern. Expected one as in .gitignore" in result.stderr
    assert not (drawn / "captions.jsonl").exists()
