from __future__ import annotations

import errno
import os
import stat
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from blip2cap.errors import OutputError, UsageError
from tests.exports import HOSTILE, CrashAtSync, answer, caption, failure, make_images, names_in, run, run_named
from tests.files import Failing, Killed

DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
LI = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"


def description(path: Path) -> str:
    (entry,) = ElementTree.parse(path).getroot().iter(LI)
    assert entry.attrib == {"{http://www.w3.org/XML/1998/namespace}lang": "x-default"}
    return entry.text or ""


def without_controls(text: str) -> str:
    return "".join(" " if ord(letter) < 32 or 127 <= ord(letter) < 160 else letter for letter in text)


def test_captions_lie_beside_their_images_as_one_line_of_utf8(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(len(HOSTILE))]
    root = make_images(tmp_path / "imgs", *names)
    run(tmp_path, map(caption, names, HOSTILE), "txt", root=root)
    for number, text in enumerate(HOSTILE):
        read = (root / f"{number}.txt").read_bytes().decode("utf-8")
        assert len(read.splitlines()) == 1
        squeezed = "".join(without_controls(text).replace("\u2028", " ").replace("\u2029", " ").split())
        assert "".join(read.split()) == squeezed
    assert (root / "1.txt").read_bytes() == b"two lines and a third"


def test_folders_are_kept_below_out_where_no_image_is_needed(tmp_path: Path) -> None:
    rows = [caption("a.jpg", "one"), caption("pets/cats/b.png", "two"), caption("pets/no_suffix", "three")]
    summary = run(tmp_path, rows, "txt", out=tmp_path / "out", extension=".caption")
    assert names_in(tmp_path / "out") == ["a.caption", "pets/cats/b.caption", "pets/no_suffix.caption"]
    assert (tmp_path / "out/pets/cats/b.caption").read_bytes() == b"two"
    assert (summary.num_written, summary.left_out) == (3, {})


def test_two_images_with_one_stem_get_no_sidecar_wherever_they_stand(tmp_path: Path) -> None:
    rows = [caption("cat.png", "one"), *(caption(f"{number}.png") for number in range(50)), caption("cat.jpg", "two")]
    summary, names = run_named(tmp_path, rows, "txt", out=tmp_path / "out")
    assert names == {"cat.png": "collision", "cat.jpg": "collision"}
    assert (summary.num_written, summary.left_out) == (50, {"collision": 2})
    assert not (tmp_path / "out/cat.txt").exists()
    for existing in ("skip", "overwrite", "append"):
        (tmp_path / "out/cat.txt").write_text("by hand")
        assert run(tmp_path, rows, "txt", out=tmp_path / "out", existing=existing).left_out["collision"] == 2
        assert (tmp_path / "out/cat.txt").read_text() == "by hand"


def test_names_that_end_in_one_place_collide(tmp_path: Path) -> None:
    rows = [caption("a/../cat.jpg"), caption("./cat.jpg"), caption("b//dog.jpg"), caption("b/dog.png")]
    assert run(tmp_path, rows, "txt", out=tmp_path / "out").left_out == {"collision": 4}


@pytest.mark.parametrize("beside", [True, False])
def test_an_image_that_is_called_as_a_sidecar_is_never_written_over(tmp_path: Path, beside: bool) -> None:
    root = make_images(tmp_path / "imgs", "cat.txt", "cat.png", "dog.txt", "dog.png", "bird.txt")
    before = {name: (root / name).read_bytes() for name in names_in(root)}
    rows = [caption("cat.txt"), caption("cat.png"), failure("dog.txt"), caption("dog.png"), caption("bird.txt")]
    where = {} if beside else {"out": root}
    summary = run(tmp_path, rows, "txt", root=root, existing="overwrite", **where)
    assert (summary.num_written, summary.left_out) == (0, {"collision": 4})
    assert {name: (root / name).read_bytes() for name in names_in(root)} == before


def test_only_rows_that_are_ok_are_written_and_the_others_counted(tmp_path: Path) -> None:
    rows = [failure("cat.png"), caption("cat.jpg"), caption("dog.jpg", " \n "), failure("bird.jpg")]
    summary = run(tmp_path, rows, "txt", out=tmp_path / "out")
    assert (summary.num_rows, summary.num_written, summary.num_failed, summary.left_out) == (4, 1, 2, {"empty": 1})
    assert names_in(tmp_path / "out") == ["cat.txt"]


def test_an_image_that_has_gone_gets_no_sidecar_beside_it(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", "here.jpg")
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    rows = [caption(f"{name}.jpg") for name in ("here", "gone", "folder", "pipe")]
    summary, names = run_named(tmp_path, rows, "txt", root=root)
    assert names == dict.fromkeys(["gone.jpg", "folder.jpg", "pipe.jpg"], "missing_image")
    assert (summary.num_written, [*root.glob("*.txt")]) == (1, [root / "here.txt"])


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ("skip", "by hand\n"),
        ("overwrite", "a cat"),
        ("append", "by hand, a cat"),
        ("prepend", "a cat, by hand"),
    ],
)
def test_captions_that_are_there_are_treated_as_asked_twice_as_well_as_once(
    tmp_path: Path, existing: str, expected: str
) -> None:
    root = make_images(tmp_path / "imgs", "cat.jpg", "dog.jpg", "same.jpg")
    (root / "cat.txt").write_text("by hand\n")
    (root / "same.txt").write_bytes(b"\xef\xbb\xbfa cat")
    for _ in range(2):
        run(tmp_path, map(caption, ("cat.jpg", "dog.jpg", "same.jpg")), "txt", root=root, existing=existing)
        assert (root / "cat.txt").read_bytes().decode() == expected
        assert (root / "dog.txt").read_bytes() == b"a cat"
        assert (root / "same.txt").read_text("utf-8-sig") == "a cat"


def test_captions_are_joined_with_the_separator_that_was_asked_for(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", "cat.jpg")
    (root / "cat.txt").write_text("by hand")
    run(tmp_path, [caption("cat.jpg")], "txt", root=root, existing="append", separator=" | ")
    assert (root / "cat.txt").read_text() == "by hand | a cat"


def test_what_is_no_text_is_not_added_to(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", "cat.jpg")
    (root / "cat.txt").write_bytes(b"caf\xe9")
    assert run(tmp_path, [caption("cat.jpg")], "txt", root=root, existing="append").left_out == {"not_text": 1}
    assert (root / "cat.txt").read_bytes() == b"caf\xe9"


def test_names_that_lead_away_stay_below_out(tmp_path: Path) -> None:
    root = make_images(tmp_path / "a/imgs", "in.jpg")
    rows = [
        caption("../away.jpg", "one"),
        caption("/elsewhere/b.jpg", "two"),
        caption("x/../../up.jpg", "three"),
        caption(str(root / "in.jpg"), "four"),
        caption("..", "five"),
    ]
    out = tmp_path / "deep/out"
    run(tmp_path, rows, "txt", root=root, out=out)
    here = str(tmp_path).lstrip("/")
    # As tar does it: an absolute name without its slash. What lies in the folder of the images keeps its short name.
    assert names_in(out) == sorted(
        [f"{here}/a.txt", f"{here}/a/away.txt", f"{here}/a/up.txt", "elsewhere/b.txt", "in.txt"]
    )
    assert names_in(tmp_path / "deep") == [f"out/{name}" for name in names_in(out)]


def test_without_a_folder_of_images_names_that_lead_up_are_left_out(tmp_path: Path) -> None:
    rows = [caption("../away.jpg"), caption("/elsewhere/b.jpg"), caption("a/../../c.jpg"), caption("a/../d.jpg")]
    _, names = run_named(tmp_path, rows, "txt", out=tmp_path / "out")
    assert names == {"../away.jpg": "outside", "a/../../c.jpg": "outside"}
    assert names_in(tmp_path / "out") == ["d.txt", "elsewhere/b.txt"]


def test_no_link_below_out_leads_a_sidecar_away(tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/link").symlink_to(tmp_path / "away")
    rows = [caption("link/a.jpg"), caption("link/deeper/a.jpg"), caption("plain/a.jpg")]
    summary = run(tmp_path, rows, "txt", out=tmp_path / "out")
    assert (summary.left_out, names_in(tmp_path / "away")) == ({"outside": 2}, [])


def test_the_real_bytes_of_a_name_are_used(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    root = make_images(tmp_path / "imgs", name)
    run(tmp_path, [caption(name)], "txt", root=root)
    assert sorted(os.listdir(os.fsencode(root))) == [b"caf\xe9.jpg", b"caf\xe9.txt"]


def test_answers_to_one_question_are_written_and_several_need_a_choice(tmp_path: Path) -> None:
    rows = [answer("a.jpg", "what?", "a cat"), answer("a.jpg", "where?", "here"), answer("b.jpg", "what?", "a dog")]
    with pytest.raises(UsageError, match=r'"what\?", "where\?". Choose one with question'):
        run(tmp_path, rows, "txt", out=tmp_path / "out")
    with pytest.raises(UsageError, match=r'"who\?": nobody asked that'):
        run(tmp_path, rows, "txt", out=tmp_path / "out", question="who?")
    with pytest.raises(UsageError, match="no effect on captions"):
        run(tmp_path, [caption("a.jpg")], "txt", out=tmp_path / "out", question="who?")
    assert not (tmp_path / "out").exists()
    summary = run(tmp_path, rows, "txt", out=tmp_path / "out", question="what?")
    assert (summary.num_written, summary.num_other_questions) == (2, 1)
    assert [(tmp_path / "out" / name).read_text() for name in ("a.txt", "b.txt")] == ["a cat", "a dog"]
    assert run(tmp_path, rows[::2], "txt", out=tmp_path / "again").num_written == 2


def test_a_dry_run_counts_the_same_and_writes_nothing(tmp_path: Path) -> None:
    rows = [caption("cat.png"), caption("cat.jpg"), caption("dog.jpg"), caption("old.jpg"), failure("bad.jpg")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.txt").write_text("by hand")
    dry = run(tmp_path, rows, "txt", out=tmp_path / "out", dry_run=True)
    assert names_in(tmp_path / "out") == ["old.txt"]
    assert dry == run(tmp_path, rows, "txt", out=tmp_path / "out")


def test_a_crash_leaves_whole_files_only(tmp_path: Path) -> None:
    rows = [caption(f"{number}.jpg") for number in range(4)]
    with pytest.raises(Killed):
        run(tmp_path, rows, "txt", out=tmp_path / "out", files=CrashAtSync(2))
    assert names_in(tmp_path / "out") == ["0.txt", "1.txt"]
    assert {path.read_bytes() for path in (tmp_path / "out").iterdir()} == {b"a cat"}


def test_an_image_with_the_longest_name_has_a_sidecar(tmp_path: Path) -> None:
    name = "x" * 251
    run(tmp_path, [caption(f"{name}.jpg")], "txt", out=tmp_path / "out")
    assert names_in(tmp_path / "out") == [f"{name}.txt"]


def test_a_place_that_cannot_be_written_is_an_output_error_with_its_name(tmp_path: Path) -> None:
    for operation in ("open", "write", "fsync", "close", "replace"):
        files = Failing(0, errno.ENOSPC, only=operation)
        with pytest.raises(OutputError, match=r"dog\.txt cannot be written: No space left"):
            run(tmp_path, [caption("dog.jpg")], "txt", out=tmp_path / "out", files=files)
    assert names_in(tmp_path / "out") == []


@pytest.mark.parametrize("existing", ["overwrite", "append"])
def test_an_entry_that_cannot_be_written_costs_that_entry(tmp_path: Path, existing: str) -> None:
    out = tmp_path / "out"
    (out / "folder.caption").mkdir(parents=True)
    os.mkfifo(out / "fifo.caption")
    (out / "file").touch()
    (out / "loop.caption").symlink_to("loop.caption")
    names = ["first.jpg", "folder.jpg", f"{'x' * 251}.jpg", "file/a.jpg", "loop.jpg", "fifo.jpg", "last.jpg"]
    summary, left = run_named(tmp_path, map(caption, names), "txt", out=out, existing=existing, extension=".caption")
    assert left == dict.fromkeys([name for name in names if name not in ("first.jpg", "last.jpg")], "unwritable")
    assert (summary.num_written, stat.S_ISFIFO((out / "fifo.caption").stat().st_mode)) == (2, True)
    assert [(out / f"{name}.caption").read_text() for name in ("first", "last")] == ["a cat"] * 2


def test_a_sidecar_that_is_a_link_is_followed_as_long_as_it_stays_below_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "away.txt").write_text("by hand")
    (out / "a.txt").symlink_to("real.txt")
    (out / "b.txt").symlink_to("../away.txt")
    _, left = run_named(tmp_path, map(caption, ("a.jpg", "b.jpg")), "txt", out=out, existing="overwrite")
    assert left == {"b.jpg": "outside"}
    assert ((out / "a.txt").is_symlink(), (out / "real.txt").read_text()) == (True, "a cat")
    assert (tmp_path / "away.txt").read_text() == "by hand"


def test_of_several_captions_the_first_all_or_a_random_one_are_written(tmp_path: Path) -> None:
    rows = [caption("a.jpg", "one", texts=("one", "two\nlines", " ", "three")), caption("b.jpg", "x", texts=("x", "x"))]
    affixes: dict[str, Any] = {"prefix": {"": "("}, "suffix": {"": ")"}}
    for which, expected in ((None, "(one)"), ("all", "(one)\n(two lines)\n(three)"), ("random:1", "(three)")):
        summary = run(tmp_path, rows, "txt", out=tmp_path / str(which), which=which, **affixes)
        assert (tmp_path / str(which) / "a.txt").read_text() == expected
        assert (summary.num_several, summary.num_captions) == (2, 6 if which == "all" else 2)


def test_files_have_the_rights_that_other_new_files_have(tmp_path: Path) -> None:
    run(tmp_path, [caption("cat.jpg")], "txt", out=tmp_path / "out")
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out/cat.txt", tmp_path / "plain")}
    assert len(modes) == 1


def test_xmp_holds_every_caption_and_images_stay_as_they_are(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(len(HOSTILE))]
    root = make_images(tmp_path / "imgs", *names)
    before = {name: ((root / name).read_bytes(), (root / name).stat().st_mtime_ns) for name in names}
    run(tmp_path, map(caption, names, HOSTILE), "xmp", root=root)
    for number, text in enumerate(HOSTILE):
        read = description(root / f"{number}.xmp")
        squeezed = "".join(without_controls(text).replace("\ufffe", " ").replace("\uffff", " ").split())
        assert "".join(read.split()) == squeezed
    assert {name: ((root / name).read_bytes(), (root / name).stat().st_mtime_ns) for name in names} == before


def test_xmp_of_others_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    root = make_images(tmp_path / "imgs", "cat.jpg")
    (root / "cat.xmp").write_text("<ratings/>")
    assert run(tmp_path, [caption("cat.jpg")], "xmp", root=root).left_out == {"existing": 1}
    assert (root / "cat.xmp").read_text() == "<ratings/>"
    with pytest.raises(UsageError, match="existing append is for to txt"):
        run(tmp_path, [caption("cat.jpg")], "xmp", root=root, existing="append")
    run(tmp_path, [caption("cat.jpg", "a < b & c")], "xmp", root=root, existing="overwrite")
    assert description(root / "cat.xmp") == "a < b & c"
