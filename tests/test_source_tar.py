from __future__ import annotations

import gzip
import os
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
import pytest

from blip2cap.decode.read import read
from blip2cap.errors import ImageError, InputError
from blip2cap.options import DecodeOptions, SourceOptions
from blip2cap.records import ImageRef
from blip2cap.source.inputs import Source
from tests.archives import ZEROS, header, make_tar, member, pax
from tests.commands import TINY, invoke, names_below, read_rows

DECODE = DecodeOptions()
A_FEW = {"a.jpg": b"first", "pets/b.png": b"", "pets/c.webp": bytes(range(256)) * 5}
KINDS = ["x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz", "x.tar.zst"]


@pytest.fixture(autouse=True)
def nothing_new_on_disk(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Path]]:
    """Everything is written before a source is made; a new file after that is an error."""
    inside = here / "inside"
    inside.mkdir()
    (here / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(here / "tmp"))
    monkeypatch.chdir(inside)
    allowed: set[Path] = set()
    yield allowed
    new = {path for path in here.rglob("*") if path.is_file() or path.is_symlink()} - allowed
    assert {path.name for path in new} <= {*KINDS, "x.plain"}, new


def write(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


def compress(name: str, plain: bytes) -> str:
    """Write a tar as its name says."""
    mode = {"gz": "gzip", "tgz": "gzip", "bz2": "bz2", "zst": "zstd"}.get(name.rsplit(".", 1)[1])
    if name.endswith("xz"):
        import lzma

        return write(name, lzma.compress(plain))
    with pyarrow.output_stream(name, compression=mode) as stream:
        stream.write(plain)
    return name


def source(*inputs: str, **options) -> Source:
    return Source(SourceOptions(inputs=inputs, **options))


def contents(images: Iterable[ImageRef]) -> dict[str, bytes | str]:
    """Read everything: bytes, or the code of what is wrong."""
    found: dict[str, bytes | str] = {}
    for ref in images:
        try:
            found[ref.name] = read(ref, DECODE)
        except ImageError as error:
            found[ref.name] = error.code
    return found


@pytest.mark.parametrize("name", KINDS)
def test_members_come_in_order_under_the_name_of_their_tar(name):
    compress(name, make_tar(Path("x.plain"), A_FEW).read_bytes())
    images = source(name)
    stream = images.stream()
    expected = {f"{name}#{member}": data for member, data in A_FEW.items()}
    assert list(contents(stream).items()) == list(expected.items())
    assert contents(images) == expected
    assert not stream.skipped
    assert images.repeatable == (name == "x.tar")
    assert images.root == os.getcwd()


def test_a_tar_that_is_compressed_whatever_its_name_says_is_read(here):
    write("x.tar", gzip.compress(make_tar(Path("x.plain"), A_FEW).read_bytes()))
    assert list(contents(source("x.tar")).values()) == list(A_FEW.values())


def test_members_of_a_plain_tar_are_not_read_by_the_walk():
    make_tar(Path("x.tar"), A_FEW)
    first, *_ = source("x.tar")
    assert (first.path, first.offset, first.num_bytes, first.load) == ("x.tar", 512, 5, None)


def test_what_is_no_image_by_its_name_is_passed_over_and_counted():
    names = ["000.jpg", "000.txt", "000.json", "000.cls", ".hidden.jpg", "._000.jpg", ".git/a.jpg", "./b.JPG"]
    make_tar(Path("x.tar"), dict.fromkeys(names, b"x"))
    images = source("x.tar").stream()
    assert list(contents(images)) == ["x.tar#000.jpg", "x.tar#./b.JPG"]
    assert images.skipped == {"other_suffix": 3, "hidden": 3}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_a_device_with_the_name_of_an_image_is_a_failed_row(name, kind):
    parts = member("etc.jpg", kind=kind, link="/etc/passwd"), member("b.jpg", b"good"), member("no.txt", kind=kind)
    compress(name, b"".join(parts) + 2 * ZEROS)
    images = source(name).stream()
    assert contents(images) == {f"{name}#etc.jpg": "not_regular", f"{name}#b.jpg": b"good"}
    assert images.skipped == {"other_suffix": 1}


def test_folders_are_neither_rows_nor_counted():
    write("x.tar", member("a.jpg/", kind=tarfile.DIRTYPE) + member("a.jpg/b.jpg", b"x") + 2 * ZEROS)
    images = source("x.tar").stream()
    assert contents(images) == {"x.tar#a.jpg/b.jpg": b"x"}
    assert not images.skipped


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_names_are_names_wherever_they_point(suffix):
    names = [
        "../x.jpg",
        "../../../../tmp/evil.jpg",
        "/etc/evil.jpg",
        "a/../../b.jpg",
        "two\nlines.jpg",
        "é" * 200 + ".jpg",
    ]
    name = f"x.{suffix}"
    compress(name, make_tar(Path("x.plain"), dict.fromkeys(names, b"x")).read_bytes())
    assert list(contents(source(name))) == [f"{name}#{each}" for each in names]


def test_names_that_are_not_utf8_are_kept_byte_for_byte():
    raw = member("caf?.jpg", b"x").replace(b"caf?", b"caf\xe9")
    total = sum(raw[:148]) + 8 * 32 + sum(raw[156:512])
    write("x.tar", raw[:148] + b"%06o\0 " % total + raw[156:] + 2 * ZEROS)
    (ref,) = source("x.tar")
    assert os.fsencode(ref.name) == b"x.tar#caf\xe9.jpg"
    assert (ref.file_name, bool(ref.file_name_b64)) == ("x.tar#caf\\xe9.jpg", True)
    assert read(ref, DECODE) == b"x"


def test_nul_in_a_name_is_written_as_an_escape():
    write("x.tar", pax({"path": b"a\0b64.jpg"}) + member("y.jpg", b"x") + 2 * ZEROS)
    assert contents(source("x.tar")) == {"x.tar#a\\x00b64.jpg": b"x"}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_of_members_with_one_name_the_first_is_taken_and_the_others_are_counted(name):
    compress(name, member("a.jpg", b"one") + member("a.jpg", b"two") + member("b.jpg", b"three") + 2 * ZEROS)
    images = source(name).stream()
    assert contents(images) == {f"{name}#a.jpg": b"one", f"{name}#b.jpg": b"three"}
    assert images.skipped == {"duplicate": 1}


def test_equal_members_of_two_tars_are_two_images():
    for name in ("x.tar", "x.tar.gz"):
        compress(name, make_tar(Path("x.plain"), {"a.jpg": name.encode()}).read_bytes())
    assert contents(source("x.tar", "x.tar.gz")) == {"x.tar#a.jpg": b"x.tar", "x.tar.gz#a.jpg": b"x.tar.gz"}


def test_a_limit_holds_for_members():
    make_tar(Path("x.tar"), A_FEW)
    assert list(contents(source("x.tar", limit=2))) == ["x.tar#a.jpg", "x.tar#pets/b.png"]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_tar_cut_at_any_byte_gives_what_came_before_and_says_that_it_is_cut(compressed):
    plain = member("a.jpg", b"first") + member("b.jpg", bytes(600)) + member("c.jpg", b"x") + 2 * ZEROS
    whole = list(contents(source(write("x.tar", plain))).items())
    assert len(whole) == 3
    content = gzip.compress(plain, 0) if compressed else plain
    for cut in range(1, len(content), 31):
        write("x.tar", content[:cut])
        if cut < 512:
            with pytest.raises(InputError):
                source("x.tar")
            continue
        if compressed and cut < 560:
            continue  # the first header may be whole or not
        images = source("x.tar").stream()
        found = list(contents(images).items())
        good = [item for item in found if item[1] != "truncated"]
        assert good == whole[: len(good)]
        assert len(found) - len(good) <= 1
        ended = cut >= len(plain) - 512 + (19 if compressed else 0)
        assert ended or images.skipped == {"unreadable_archive": 1}, cut
        assert ended or images.damaged[0].startswith("x.tar: not read to its end: ")


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_damaged_header_in_the_middle_ends_the_tar_and_is_told(name):
    parts = [member(f"{number}.jpg", b"x") for number in range(4)]
    parts[2] = b"?" + parts[2][1:]
    images = source(compress(name, b"".join(parts) + 2 * ZEROS)).stream()
    assert contents(images) == {f"{name}#0.jpg": b"x", f"{name}#1.jpg": b"x"}
    assert images.skipped == {"unreadable_archive": 1}
    assert images.damaged == [f"{name}: not read to its end: it has no end mark, or a damaged header"]


def test_damage_inside_a_compressed_stream_ends_the_tar_and_is_told():
    content = bytearray(
        gzip.compress(make_tar(Path("x.plain"), {"a.jpg": b"x", "b.jpg": os.urandom(200_000)}).read_bytes())
    )
    content[100_000:100_100] = bytes(100)
    write("x.tar.gz", bytes(content))
    images = source("x.tar.gz").stream()
    contents(images)
    assert images.skipped == {"unreadable_archive": 1}


def test_the_tar_after_a_damaged_one_is_read_and_each_stream_has_its_own_counts():
    write("x.tar", member("a.jpg", b"x"))
    write("x.tar.gz", gzip.compress(member("b.jpg", b"y") + 2 * ZEROS))
    archives = source("x.tar", "x.tar.gz")
    for _ in range(2):
        images = archives.stream()
        assert contents(images) == {"x.tar#a.jpg": b"x", "x.tar.gz#b.jpg": b"y"}
        assert (images.skipped, len(images.damaged)) == ({"unreadable_archive": 1}, 1)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\xff\xd8\xff\xe0" + bytes(2000), gzip.compress(b"hello" * 500, mtime=0), b"\x1f\x8bnot gzip"],
    ids=["empty", "text", "jpeg", "gzip", "no gzip"],
)
def test_a_file_called_tar_that_is_none_is_refused_at_once(content):
    write("x.tar", content)
    with pytest.raises(InputError, match=r"x.tar: cannot be read as a tar archive: .*Expected one"):
        source("x.tar")


def test_an_empty_tar_has_no_image():
    images = source(write("x.tar", 20 * ZEROS)).stream()
    assert contents(images) == {}
    assert not images.skipped


def test_a_folder_called_tar_is_a_folder():
    os.mkdir("folder.tar")
    assert contents(source("folder.tar")) == {}


def peak_of(images: Iterable[ImageRef]) -> tuple[dict[str, bytes | str], float]:
    """Read everything; return it with the most memory that it took, in MB."""
    tracemalloc.start()
    try:
        return contents(images), tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


MB = 1 << 20
HOSTILE: dict[str, tuple[bytes, dict[str, bytes | str]]] = {
    "a terabyte": (header("a.jpg", size=1 << 40), {"a.jpg": "too_large"}),
    "half a gigabyte": (header("a.jpg", size=500_000_000), {"a.jpg": "truncated"}),
    "a name of a terabyte": (header("././@LongLink", size=1 << 40, kind=tarfile.GNUTYPE_LONGNAME), {}),
    "a name of 32 MB": (member("././@LongLink", bytes(32 * MB), kind=tarfile.GNUTYPE_LONGNAME), {}),
    "an extended header of a terabyte": (header("pax", size=1 << 40, kind=tarfile.XHDTYPE), {}),
    "an extended header of 32 MB": (pax({"comment": bytes(32 * MB)}), {}),
    "a global header of 32 MB": (member("g", bytes(32 * MB), kind=tarfile.XGLTYPE), {}),
    "headers without end": (pax({"comment": "x"}) * 5_000, {}),
    "a size below zero": (header("a.jpg", size=-1024), {}),
    "an extended size below zero": (pax({"size": "-10240"}) + header("a.jpg", size=0), {}),
    "an extended size of a terabyte": (pax({"size": str(1 << 40)}) + member("a.jpg"), {"a.jpg": "too_large"}),
    "an extended size that is none": (pax({"size": "many"}) + member("a.jpg", b"x"), {"a.jpg": b""}),
}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_header_that_lies_costs_a_row_or_the_rest_of_its_tar_and_no_memory(name, what):
    lie, expected = HOSTILE[what]
    compress(name, member("good.jpg", b"good") + lie + member("after.jpg", b"after") + 2 * ZEROS)
    images = source(name).stream()
    found, peak = peak_of(images)
    wanted = {f"{name}#good.jpg": b"good"} | {f"{name}#{key}": value for key, value in expected.items()}
    assert {key: found[key] for key in wanted if key in found} == wanted
    assert found.keys() - wanted.keys() <= {f"{name}#after.jpg"}
    assert f"{name}#after.jpg" in found or images.skipped == {"unreadable_archive": 1}
    assert peak < 12


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar.xz", "x.tar.zst"])
def test_a_bomb_is_a_failed_row_and_what_comes_after_is_read(name):
    compress(name, member("bomb.jpg", bytes(32 * MB)) + member("after.jpg", b"x") + 2 * ZEROS)
    assert Path(name).stat().st_size < MB
    found, peak = peak_of(source(name, max_bytes=MB))
    assert found == {f"{name}#bomb.jpg": "too_large", f"{name}#after.jpg": b"x"}
    assert peak < 12


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_sparse_member_is_not_made_whole(name):
    sparse = pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1000000000"})
    old = header("old.jpg", size=0, kind=tarfile.GNUTYPE_SPARSE)
    old = old[:386] + b"0" * 12 + b"00000001000\0" + old[410:483] + b"07777777777\0" + old[495:]
    old = old[:148] + b"%06o\0 " % (sum(old[:148]) + 8 * 32 + sum(old[156:])) + old[156:]
    body = b"1\n999999999\n1\n".ljust(512, b"\0") + b"x".ljust(512, b"\0")
    compress(name, sparse + member("pax.jpg", body) + old + member("after.jpg", b"x") + 2 * ZEROS)
    images = source(name).stream()
    found, peak = peak_of(images)
    assert found[f"{name}#pax.jpg"] == "unsupported"
    assert found.get(f"{name}#old.jpg", "unsupported") == "unsupported"
    assert f"{name}#after.jpg" in found or images.skipped == {"unreadable_archive": 1}
    assert peak < 12


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_members():
    write("x.tar", b"".join(member(f"{number}.txt") for number in range(4_000)) + 2 * ZEROS)
    images = source("x.tar").stream()
    found, peak = peak_of(images)
    assert (found, images.skipped) == ({}, Counter(other_suffix=4_000))
    assert peak < 1


@pytest.fixture
def scenes_tar(scenes, here, nothing_new_on_disk):
    """A tar of drawn scenes with a text beside each; the outputs of commands are allowed."""
    members: dict[str, bytes] = {}
    for name in names_below(scenes):
        members |= {name: (scenes / name).read_bytes(), name.replace(".png", ".txt"): b"old caption"}
    path = make_tar(here / "inside" / "x.tar", members)
    yield path
    nothing_new_on_disk |= {*(here / "inside").glob("captions.jsonl*")}


def test_a_tar_is_captioned_like_its_folder_and_resumed(scenes, scenes_tar):
    assert invoke("caption", scenes, *TINY, "-o", "captions.jsonl").exit_code == 0
    expected = {f"x.tar#{row['file_name']}": row["text"] for row in read_rows(Path("captions.jsonl"))}
    for arguments in (["--overwrite", "--limit", "2"], [], []):
        assert invoke("caption", "x.tar", *TINY, *arguments).exit_code == 0
    assert {row["file_name"]: row["text"] for row in read_rows(Path("captions.jsonl"))} == expected
    dry = invoke("caption", "x.tar", *TINY, "--dry-run")
    assert "0 of 5 images to do, 5 already done, skipped 5 other suffix" in dry.stderr


def test_a_cut_tar_ends_with_3_and_says_which(scenes_tar):
    scenes_tar.write_bytes(scenes_tar.read_bytes()[:3000])
    result = invoke("caption", "x.tar", *TINY)
    assert result.exit_code == 3
    assert "x.tar: not read to its end:" in result.stderr
    assert "skipped 1 unreadable archive" in result.stderr
    assert invoke("caption", "x.tar", *TINY).exit_code == 3


def test_shards_are_written_with_braces_and_a_missing_one_is_named(scenes_tar):
    os.mkdir("shards")
    for number in range(2):
        (Path("shards") / f"0{number}.tar").symlink_to(scenes_tar)
    images = source("shards/{00..01}.tar")
    assert [ref.name for ref in images][::5] == ["shards/00.tar#000.png", "shards/01.tar#000.png"]
    with pytest.raises(InputError, match=r"shards/02.tar: no such file or folder"):
        source("shards/{00..02}.tar")
    for path in Path("shards").iterdir():
        path.unlink()


def test_a_benchmark_refuses_archives(scenes_tar):
    result = invoke("bench", "x.tar", "-m", "tiny")
    assert (result.exit_code, "give folders or image files" in result.stderr) == (2, True)
