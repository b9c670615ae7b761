from __future__ import annotations

import csv
import io
import json
import os
import stat
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip2cap.outputs.manifest import UNFINISHED, Manifest
from blip2cap.outputs.open import read_manifest
from blip2cap.outputs.parquet import ParquetSink
from blip2cap.outputs.parts.part import Part
from blip2cap.outputs.parts.plan import make_plan
from blip2cap.outputs.parts.store import LocalStore
from blip2cap.records import ImageRef
from blip2cap.rows import Row
from tests.commands import TINY, draw_scenes, finish, invoke, read_rows, start
from tests.exports import answer, caption, failure, make_images, names_in, write_results
from tests.rows import SETTINGS, row

FORMATS = {
    "txt": "tree",
    "xmp": "tree",
    "imagefolder": "imgs/metadata.jsonl",
    "kohya": "meta_cap.json",
    "csv": "out.csv",
    "coco": "coco.json",
    "webdataset": "shards",
    "labelstudio": "tasks.json",
    "parquet": "out.parquet",
    "jsonl": "out.jsonl",
}


@pytest.fixture
def captioned(here: Path) -> Path:
    """Two images, a third that is broken, and one that has gone, with their captions."""
    make_images(here / "imgs", "a.jpg", "sub/b.jpg", "bad.jpg")
    rows = [caption("a.jpg", "one"), caption("sub/b.jpg", "two"), failure("bad.jpg")]
    write_results(here / "captions.jsonl", rows, here / "imgs")
    return here


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_is_written_and_the_summary_counts(captioned: Path, to: str) -> None:
    before = (captioned / "captions.jsonl").read_bytes()
    result = invoke("export", "captions.jsonl", "--to", to, "--out", FORMATS[to])
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"{to}, {FORMATS[to]}: 2 written, 1 failed row left out\n"
    assert (captioned / FORMATS[to]).exists()
    assert (captioned / "captions.jsonl").read_bytes() == before


def test_sidecars_go_beside_the_images_that_the_manifest_names(captioned: Path) -> None:
    result = invoke("export", "captions.jsonl", "--to", "txt", "--json")
    assert json.loads(result.stdout) == {
        "to": "txt",
        "out": "",
        "rows": 3,
        "written": 2,
        "failed": 1,
        "other_questions": 0,
        "left_out": {},
        "torn_bytes": 0,
        "dry_run": False,
    }
    assert names_in(captioned / "imgs") == ["a.jpg", "a.txt", "bad.jpg", "sub/b.jpg", "sub/b.txt"]
    assert "2 existing" in invoke("export", "captions.jsonl", "--to", "txt").stderr


def test_images_that_have_moved_are_found_with_images(captioned: Path) -> None:
    (captioned / "imgs").rename(captioned / "moved")
    result = invoke("export", "captions.jsonl", "--to", "txt")
    assert (result.exit_code, "Give --images DIR" in result.stderr) == (2, True)
    assert invoke("export", "captions.jsonl", "--to", "txt", "--images", "moved").exit_code == 0
    assert (captioned / "moved/sub/b.txt").read_text() == "two"


def test_what_is_left_out_is_named_and_the_exit_code_is_3(captioned: Path) -> None:
    rows = [caption("a.jpg"), caption("a.png"), caption("gone\x1b[31m.jpg"), *(caption(f"{n}.jpg") for n in range(30))]
    write_results(captioned / "captions.jsonl", rows, captioned / "imgs")
    result = invoke("export", "captions.jsonl", "--to", "kohya")
    assert result.exit_code == 3
    lines = result.stderr.splitlines()
    assert lines[0] == "a.jpg: collision: another image would get the same name"
    assert lines[2] == "gone\\x1b[31m.jpg: missing_image: the image does not exist, or cannot be read"
    assert lines[20:] == [
        "... and 13 more are left out.",
        "kohya, meta_cap.json: 0 written, 1 collision, 32 missing image",
    ]
    assert invoke("export", "captions.jsonl", "--to", "kohya", "--quiet", "--existing", "overwrite").stderr == ""


def test_a_dry_run_writes_nothing_and_has_the_same_exit_code(captioned: Path) -> None:
    rows = [caption("a.jpg"), caption("sub/b.jpg"), caption("gone.jpg")]
    write_results(captioned / "captions.jsonl", rows, captioned / "imgs")
    before = names_in(captioned)
    for to, out in FORMATS.items():
        result = invoke("export", "captions.jsonl", "--to", to, "--out", out, "--dry-run", "--json")
        needs_images = to in ("imagefolder", "kohya", "webdataset")
        assert (result.exit_code, json.loads(result.stdout)["to_write"]) == ((3, 2) if needs_images else (0, 3)), to
    assert names_in(captioned) == before


def test_prefixes_are_for_folders_and_one_that_matches_nothing_is_said(captioned: Path) -> None:
    texts = ("--prefix", "photo, ", "--prefix", "sub/=sub, ", "--prefix", "nowhere/=x", "--suffix", ".")
    result = invoke("export", "captions.jsonl", "--to", "txt", *texts)
    assert result.exit_code == 0
    assert "nowhere/: has a --prefix or --suffix, and no image in it" in result.stderr
    assert (captioned / "imgs/a.txt").read_text() == "photo, one."
    assert (captioned / "imgs/sub/b.txt").read_text() == "sub, two."


def test_rows_come_from_standard_input_parts_and_parquet_too(captioned: Path) -> None:
    content = (captioned / "captions.jsonl").read_bytes()
    table = pa.Table.from_pylist(read_rows(content))
    pq.write_table(table, captioned / "captions.parquet")
    (captioned / "parts").mkdir()
    pq.write_table(table.slice(0, 1), captioned / "parts/part-00000.parquet")
    pq.write_table(table.slice(1), captioned / "parts/part-00001.parquet")
    for given in ("-", "captions.parquet", "parts"):
        out = f"{given}.csv"
        assert invoke("export", given, "--to", "csv", "--out", f"x{out}", stdin=content).exit_code == 0
        read = csv.DictReader(io.StringIO((captioned / f"x{out}").read_text()))
        assert [row["text"] for row in read] == ["one", "two"]
        assert "sub/b.jpg" in invoke("show", given, stdin=content).stdout


@pytest.mark.parametrize(
    ("command", "out"),
    [
        (("caption", "imgs"), "captions.jsonl"),
        (("caption", "imgs", "--num-captions", "2", "--num-beams", "2", "--loop-guard"), "captions.parquet"),
        (("vqa", "imgs", "-q", "where is it?", "-q", "is it day or night?"), "captions/"),
    ],
    ids=["captions", "several", "answers"],
)
def test_exported_parquet_carries_the_manifest_and_is_an_output_like_any_other(
    here: Path, command: tuple[str, ...], out: str
) -> None:
    draw_scenes(here / "imgs", 2)
    (here / "imgs/bad.jpg").write_bytes(b"")
    num_ok = 4 if command[0] == "vqa" else 2
    assert invoke(*command, *TINY, "-o", out).exit_code == 3
    assert invoke("export", out, "--to", "parquet", "-o", "d.parquet").exit_code == 0
    metadata, original = pq.read_schema(here / "d.parquet").metadata, read_manifest(out)
    manifest = Manifest.from_json(metadata[b"blip2cap"])
    assert original is not None
    assert (manifest.settings, manifest.created) == (original.settings, original.created)
    assert manifest.counts == {"ok": num_ok, "failed": {}}
    result = invoke("status", "d.parquet", "--json")
    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["rows_ok"], facts["rows_failed"]) == (0, num_ok, 0)
    if out != "captions/":  # the plan of a folder has settings of its own
        again = invoke(*command, *TINY, "-o", "d.parquet", "--dry-run")
        assert "1 of 3 images to do" in again.stderr


def test_exported_parquet_of_rows_without_a_manifest_has_none(captioned: Path) -> None:
    (captioned / "captions.jsonl.run.json").unlink()
    assert invoke("export", "captions.jsonl", "--to", "parquet", "-o", "d.parquet").exit_code == 0
    assert b"blip2cap" not in (pq.read_schema(captioned / "d.parquet").metadata or {})


@pytest.mark.parametrize("out", ["captions.parquet", "captions/"])
def test_every_kind_of_output_knows_where_its_images_are(here: Path, out: str) -> None:
    draw_scenes(here / "imgs" / "sub", 2)
    assert invoke("caption", "imgs", *TINY, "-o", out).exit_code == 0
    assert invoke("export", out, "--to", "txt").exit_code == 0
    assert sorted(path.name for path in (here / "imgs" / "sub").glob("*.txt")) == ["000.txt", "001.txt"]


def write_parts(folder: Path, *parts: list[Row], num_parts: int) -> None:
    """Make a folder of parts, planned for two images each, in which only the first ones are done."""
    store = LocalStore(f"{folder}/")
    store.prepare()
    refs = [ImageRef(path=f"{number}.jpg", name=f"{number}.jpg") for number in range(2 * num_parts)]
    plan = make_plan(store, refs, SETTINGS | {"questions": None}, part_size=2)
    assert plan is not None
    for index, rows in enumerate(parts):
        part = Part(store, plan, index)
        part.write(rows)
        part.commit()


def test_parts_that_are_not_there_yet_are_said_and_the_exit_code_is_3(here: Path) -> None:
    write_parts(here / "captions", [row(0), row(1)], [row(2), row(3)], num_parts=3)
    result = invoke("export", "captions", "--to", "csv", "--out", "o.csv")
    assert (result.exit_code, result.stderr) == (3, "csv, o.csv: 4 written, only 2 of 3 parts exist\n")
    assert len((here / "o.csv").read_text().splitlines()) == 5
    result = invoke("export", "captions", "--to", "csv", "--out", "p.csv", "--json", "--dry-run")
    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["parts"], facts["parts_there"]) == (3, 3, 2)
    write_parts(here / "whole", [row(0), row(1)], num_parts=1)
    result = invoke("export", "whole", "--to", "csv", "--out", "q.csv")
    assert (result.exit_code, result.stderr) == (0, "csv, q.csv: 2 written\n")


def test_only_the_parts_of_the_plan_are_exported(here: Path) -> None:
    write_parts(here / "captions", [row(0), row(1)], [row(2), row(3)], num_parts=2)
    for name in ("part-00001-copy.parquet", "part-00002.parquet"):
        (here / "captions" / name).write_bytes((here / "captions/part-00001.parquet").read_bytes())
    result = invoke("export", "captions", "--to", "jsonl", "-o", "o.jsonl")
    assert (result.exit_code, len(read_rows(here / "o.jsonl"))) == (0, 4)
    assert result.stderr.splitlines() == [
        "captions: ignored part-00001-copy.parquet, part-00002.parquet, not among its parts",
        "jsonl, o.jsonl: 4 written",
    ]
    assert "0.jpg" in invoke("show", "captions").stdout


def test_the_advice_for_a_damaged_part_is_about_parts(here: Path) -> None:
    write_parts(here / "captions", [row(0), row(1)], num_parts=1)
    part = here / "captions/part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.set_column(3, "status", pa.array(["ok", "odd"])), part)
    result = invoke("export", "captions", "--to", "jsonl", "-o", "o.jsonl")
    assert result.exit_code == 5
    assert "captions/part-00000.parquet:2: not a row of blip2cap" in result.stderr
    assert "if it was one, restore it from a copy. A part can be rebuilt: move it" in result.stderr
    part.write_bytes(part.read_bytes()[:-20])
    result = invoke("export", "captions", "--to", "jsonl", "-o", "o.jsonl")
    assert (result.exit_code, "A part can be rebuilt: move it" in result.stderr) == (5, True)
    assert not (here / "o.jsonl").exists()


def test_rows_of_a_parquet_run_that_was_stopped_are_exported_too(here: Path) -> None:
    root = make_images(here / "imgs", "0.jpg", "1.jpg")
    for number, stopped in ((0, True), (0, False), (1, True)):  # a journal, a whole file, both
        with closing(ParquetSink(here / "captions.parquet")) as sink:
            sink.begin(SETTINGS | {"input_root": str(root)})
            sink.write([row(number)] if stopped else [])
            sink.finish(stopped=stopped)
        result = invoke("export", "captions.parquet", "--to", "txt")
        assert result.exit_code == (3 if stopped else 0), result.stderr
        assert names_in(root) == ["0.jpg", "0.txt", "1.jpg", "1.txt"][: 4 if number else 3]
        result = invoke("export", "captions.parquet", "--to", "jsonl", "--out", "o.jsonl", "--existing", "overwrite")
        assert (result.exit_code, len(read_rows(here / "o.jsonl"))) == (3 if stopped else 0, number + 1)
        assert f"{number}.jpg" in invoke("show", "captions.parquet").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        "captions/ --to parquet -o captions/part-00000.parquet --existing overwrite",
        "captions --to parquet -o captions/part-x.parquet",
        "captions --to csv -o link/.blip2cap/o.csv",
        "captions --to csv -o captions/o.csv --existing overwrite",
        "link --to txt -o captions/texts --images imgs",
        "captions --to txt -o link --images imgs",
        "captions.parquet --to jsonl -o captions.parquet.jsonl",
        "captions.parquet --to jsonl -o ./captions/../captions.parquet.jsonl",
        "captions.parquet --to csv -o captions.parquet.jsonl.run.json",
        "captions.parquet --to parquet -o captions.parquet --existing overwrite",
        "link.parquet --to jsonl -o captions.parquet.jsonl",
        "captions.jsonl --to csv -o captions.jsonl.run.json",
    ],
)
def test_nothing_is_written_where_it_would_be_a_part_of_what_is_exported(here: Path, arguments: str) -> None:
    make_images(here / "imgs", "0.jpg")
    write_parts(here / "captions", [row(0), row(1)], num_parts=1)
    (here / "captions" / "o.csv").symlink_to("../o.csv")
    (here / "link").symlink_to("captions")
    pq.write_table(pa.Table.from_pylist([row(0).as_dict()]), here / "captions.parquet")
    (here / "link.parquet").symlink_to("captions.parquet")
    write_results(here / "captions.jsonl", [row(0)])
    before = {name: (here / name).read_bytes() for name in names_in(here)}
    result = invoke("export", *arguments.split())
    assert (result.exit_code, "that is what is exported, or a part of it" in result.stderr) == (2, True), result.stderr
    assert {name: (here / name).read_bytes() for name in names_in(here)} == before


@pytest.mark.parametrize("to", ["csv", "jsonl", "coco", "labelstudio"])
def test_a_hyphen_is_standard_output(captioned: Path, to: str) -> None:
    before = names_in(captioned)
    result = invoke("export", "captions.jsonl", "--to", to, "-o", "-")
    assert (result.exit_code, names_in(captioned)) == (0, before)
    assert result.stderr == f"{to}, standard output: 2 written, 1 failed row left out\n"
    assert invoke("export", "captions.jsonl", "--to", to, "-o", "file").exit_code == 0
    assert result.stdout_bytes == (captioned / "file").read_bytes()


def test_standard_output_that_is_closed_or_has_no_reader_ends_as_in_other_commands(captioned: Path) -> None:
    arguments = ("export", "captions.jsonl", "--to", "jsonl", "-o", "-")
    reader, writer = os.pipe()
    os.close(reader)
    command = start(*arguments, cwd=captioned, stdout=writer)
    os.close(writer)
    assert (finish(command)[1], command.returncode) == (b"", 141)
    with open("/dev/full", "wb") as full:
        command = start(*arguments, cwd=captioned, stdout=full.fileno())
    assert b"standard output cannot be written: No space left" in finish(command)[1]
    assert command.returncode == 6


def test_several_captions_are_chosen_from_and_the_summary_says_how(captioned: Path) -> None:
    rows = [caption(name, "one", texts=("one", "two")) for name in ("a.jpg", "sub/b.jpg")]
    write_results(captioned / "captions.jsonl", rows, captioned / "imgs")
    for arguments, chosen in (
        ("--to txt -o first", ", the first of several captions each"),
        ("--to txt -o all --which all", ", 4 captions"),
        ("--to txt -o random --which random:7", ", a random one of several captions each (seed 7)"),
        ("--to coco -o coco.json", ", 4 captions"),
        ("--to csv -o o.csv", ""),
    ):
        assert invoke("export", "captions.jsonl", *arguments.split()).stderr.endswith(f": 2 written{chosen}\n")
    facts = json.loads(invoke("export", "captions.jsonl", "--to", "coco", "-o", "c", "--json").stdout)
    assert (facts["which"], facts["captions"]) == ("all", 4)


def test_an_entry_that_cannot_be_written_is_said_with_its_reason(captioned: Path) -> None:
    (captioned / "imgs/a.txt").mkdir()
    result = invoke("export", "captions.jsonl", "--to", "txt", "--existing", "overwrite")
    assert result.exit_code == 3
    assert result.stderr == (
        f"a.jpg: unwritable: {captioned}/imgs/a.txt cannot be written: Is a directory\n"
        "txt, beside the images: 1 written, 1 unwritable, 1 failed row left out\n"
    )


def test_what_is_no_file_is_never_replaced_and_nobody_is_told_to(captioned: Path) -> None:
    os.mkfifo(captioned / "fifo")
    (captioned / "link").symlink_to("fifo")
    for out in ("fifo", "link"):
        for existing in ("skip", "overwrite"):
            for to, advice in (("csv", "--out - for standard output"), ("parquet", "another --out")):
                result = invoke("export", "captions.jsonl", "--to", to, "-o", out, "--existing", existing)
                assert result.exit_code == 6
                assert result.stderr == f"blip2cap: {out} cannot be written: not a regular file. Use {advice}.\n"
    assert stat.S_ISFIFO((captioned / "fifo").stat().st_mode)


def test_a_link_to_a_file_is_written_through(captioned: Path) -> None:
    (captioned / "link.csv").symlink_to("imgs/real.csv")
    assert invoke("export", "captions.jsonl", "--to", "csv", "-o", "link.csv").exit_code == 0
    assert "exists" in invoke("export", "captions.jsonl", "--to", "csv", "-o", "link.csv").stderr
    assert ((captioned / "link.csv").is_symlink(), (captioned / "imgs/real.csv").is_file()) == (True, True)


def test_absolute_names_need_no_folder(captioned: Path) -> None:
    write_results(captioned / "captions.jsonl", [caption(str(captioned / "imgs/a.jpg"), "one")])
    assert invoke("export", "captions.jsonl", "--to", "txt").exit_code == 0
    assert (captioned / "imgs/a.txt").read_text() == "one"


def test_a_bucket_is_no_results(here: Path) -> None:
    for arguments in (["show"], ["export", "--to", "csv", "--out", "o.csv"]):
        result = invoke(*arguments, "memory://captions/")
        assert (result.exit_code, "Expected a local output: copy it to a local folder" in result.stderr) == (2, True)


def test_an_output_whose_run_has_not_ended_is_said(captioned: Path) -> None:
    manifest = Manifest(settings={"input_root": str(captioned / "imgs")}, state=UNFINISHED)
    manifest.write(captioned / "captions.jsonl.run.json")
    result = invoke("export", "captions.jsonl", "--to", "csv", "--out", "o.csv")
    assert (result.exit_code, "its run has not ended, rows may be missing\n" in result.stderr) == (3, True)


def test_a_torn_tail_is_said(captioned: Path) -> None:
    whole = (captioned / "captions.jsonl").read_bytes()
    (captioned / "captions.jsonl").write_bytes(whole[:-10])
    result = invoke("export", "captions.jsonl", "--to", "csv", "--out", "o.csv")
    assert result.exit_code == 0
    assert "captions.jsonl: a torn last line of" in result.stderr
    assert "2 written\n" in result.stderr


def test_damaged_results_end_with_5_and_leave_no_file(captioned: Path) -> None:
    with open(captioned / "captions.jsonl", "ab") as file:
        file.write(b"garbage\n")
    for to in ("csv", "txt", "coco", "parquet", "labelstudio"):
        result = invoke("export", "captions.jsonl", "--to", to, "--out", f"out.{to}")
        assert result.exit_code == 5
        assert "captions.jsonl:4: not a row of blip2cap" in result.stderr
    assert [path.name for path in captioned.iterdir() if path.name.startswith(("out", "."))] == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("captions.jsonl --to gif", "--to gif: must be one of txt, imagefolder"),
        ("missing.jsonl --to csv --out o.csv", "missing.jsonl: cannot be read: No such file"),
        ("imgs --to csv --out o.csv", "imgs: a folder without part-"),
        ("captions.jsonl --to csv", "nothing says where to write. Give --out PATH"),
        ("captions.jsonl --to csv --out imgs", "--out imgs: a folder"),
        ("captions.jsonl --to txt --out captions.jsonl", "--out captions.jsonl: no folder"),
        ("captions.jsonl --to txt --images missing", "--images missing: no such folder"),
        ("captions.jsonl --to txt --extension .jpg", "--extension .jpg: the name of an image"),
        ("captions.jsonl --to csv --out imgs/a.jpg --existing overwrite", "--out imgs/a.jpg: the name of an image"),
        ("captions.jsonl --to jsonl --out captions.jsonl --existing overwrite", "that is what is exported"),
        ("captions.jsonl --to csv --out captions.jsonl.run.json --existing overwrite", "that is what is exported"),
        ("captions.jsonl --to csv --out link.jsonl --existing overwrite", "that is what is exported"),
        ("captions.jsonl --to csv --out o.csv --shard-size 5", "--shard-size has no effect with --to csv"),
        ("captions.jsonl --to csv --out o.csv --question what?", "--question has no effect on captions"),
        ("captions.jsonl --to parquet -o -", "--out -: standard output takes csv, jsonl, coco, labelstudio, not"),
        ("captions.jsonl --to txt -o -", "--out -: standard output takes csv"),
        ("captions.jsonl --to csv -o - --json", "--json and --out - exclude each other"),
        ("answers.jsonl --to xmp", "Choose one with --question TEXT"),
        ("captions.jsonl --to txt --prefix a/=1 --prefix a/=2", "was given before"),
    ],
)
def test_wrong_usage_ends_with_2_and_changes_nothing(captioned: Path, arguments: str, reason: str) -> None:
    write_results(
        captioned / "answers.jsonl", [answer("a.jpg", "what?"), answer("a.jpg", "where?")], captioned / "imgs"
    )
    (captioned / "link.jsonl").symlink_to("captions.jsonl")
    before = {name: (captioned / name).read_bytes() for name in names_in(captioned)}
    result = invoke("export", *arguments.split())
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert reason in result.stderr
    assert {name: (captioned / name).read_bytes() for name in names_in(captioned)} == before


def test_an_output_that_cannot_be_written_ends_with_6(captioned: Path) -> None:
    result = invoke("export", "captions.jsonl", "--to", "csv", "--out", "missing/o.csv")
    assert result.exit_code == 6
    assert "missing/o.csv cannot be written: No such file or directory. Create its folder first" in result.stderr


def test_captions_of_a_run_become_sidecars_of_its_images(here: Path) -> None:
    draw_scenes(here / "imgs", 2)
    assert invoke("caption", "imgs", *TINY).exit_code == 0
    assert invoke("export", "captions.jsonl", "--to", "txt").exit_code == 0
    for columns in read_rows(here / "captions.jsonl"):
        assert (here / "imgs" / columns["file_name"]).with_suffix(".txt").read_text() == columns["text"]
