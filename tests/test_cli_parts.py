"""Commands that write a folder of parts, here and in a bucket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from blip2cap.models.blip2 import load as load_module
from tests import crashing
from tests.archives import make_tar
from tests.buckets import s3_server
from tests.commands import TINY, draw_scenes, finish, invoke, names_below, read_rows, start, wait_until
from tests.full_disk import files_of_at_most
from tests.test_layers import HEAVY, imported_by

SMALL = (*TINY, "--part-size", "2")


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def names_in(folder: Path) -> list[str]:
    return [row["file_name"] for row in rows_in(folder)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*.parquet")}


def in_work(folder: Path) -> list[Path]:
    return [path for path in (folder / ".blip2cap" / "work").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all parts of `scenes`. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "captions"
    assert invoke("caption", scenes, *SMALL, "-o", f"{folder}/").exit_code == 0
    return folder


def test_parts_hold_the_rows_that_a_jsonl_file_holds(scenes: Path, finished: Path, here: Path) -> None:
    assert invoke("caption", scenes, *TINY, "-o", "captions.jsonl").exit_code == 0
    assert rows_in(finished) == read_rows(here / "captions.jsonl")
    assert names_in(finished) == names_below(scenes)
    assert {name: pq.read_metadata(finished / name).num_rows for name in contents(finished)} == {
        "part-00000.parquet": 2,
        "part-00001.parquet": 2,
        "part-00002.parquet": 1,
    }
    assert in_work(finished) == []


def test_readers_take_the_folder_or_its_parts_for_one_table(finished: Path, tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    assert pyarrow.dataset.dataset(finished, format="parquet").count_rows() == 5
    assert pl.read_parquet(finished / "part-*.parquet").height == 5
    assert duckdb.read_parquet(f"{finished}/**/*.parquet").shape == (5, 9)
    loaded = datasets.load_dataset(str(finished), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 5


def test_the_same_command_again_finds_every_part_and_changes_nothing(scenes: Path, finished: Path) -> None:
    before = contents(finished)
    result = invoke("caption", scenes, *SMALL, "-o", finished)  # an existing folder needs no /
    assert result.exit_code == 0
    assert "5 already done, nothing to do" in result.stderr
    assert "5 images in 3 parts, as listed" in result.stderr
    assert "loading" not in result.stderr
    assert contents(finished) == before


def test_a_folder_with_nothing_missing_imports_no_torch(scenes: Path, finished: Path, here: Path) -> None:
    for command in (("caption", scenes, *SMALL, "-o", finished), ("status", finished)):
        imported = imported_by(here, "-m", "blip2cap", *map(str, command))
        assert "pyarrow" in imported
        assert not imported & HEAVY


def test_a_part_that_is_missing_is_made_again_alone(scenes: Path, finished: Path, here: Path) -> None:
    command = ("caption", scenes, *SMALL, "-o", "captions/")
    invoke(*command)
    (here / "captions" / "part-00001.parquet").unlink()
    result = invoke(*command)
    assert "2 ok, 0 failed, 3 already done" in result.stderr
    assert rows_in(here / "captions") == rows_in(finished)


def test_shards_take_every_nth_part_and_do_not_mind_the_others(scenes: Path, finished: Path, here: Path) -> None:
    first = invoke("caption", scenes, *SMALL, "-o", "captions/", "--shard", "1/2", "--json")
    assert first.exit_code == 0
    assert set(contents(here / "captions")) == {"part-00000.parquet", "part-00002.parquet"}
    facts = json.loads(first.stdout)
    assert (facts["images"], facts["rows_ok"], facts["parts"], facts["parts_there"]) == (3, 3, 2, 2)
    dry = invoke("caption", scenes, *SMALL, "-o", "captions/", "--shard", "2/2", "--dry-run")
    assert "2 of 2 images to do; nothing was written" in dry.stderr
    second = invoke("caption", scenes, *TINY, "-o", "captions/", "--shard", "2/2")
    assert second.exit_code == 0
    assert rows_in(here / "captions") == rows_in(finished)


def test_another_part_size_of_a_planned_folder_is_said_to_have_no_effect(scenes: Path, finished: Path) -> None:
    result = invoke("caption", scenes, *TINY, "--part-size", "3", "-o", finished)
    assert result.exit_code == 0
    assert "--part-size 3: has no effect: the parts are already planned" in result.stderr


def test_the_same_part_size_is_not_said_to_have_no_effect_where_there_are_fewer_images(
    scenes: Path, here: Path
) -> None:
    command = ("caption", scenes, *TINY, "--part-size", "100", "-o", "captions/")
    for _ in range(2):
        result = invoke(*command)
        assert (result.exit_code, "has no effect" in result.stderr) == (0, False)


def test_no_part_is_in_work_while_the_model_is_loading(
    scenes: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_work_then: list[Path] = []
    load_model = load_module.load

    def load(*args: Any) -> Any:
        time.sleep(0.3)  # what reads ahead would have begun
        in_work_then.extend(in_work(here / "captions"))
        return load_model(*args)

    monkeypatch.setattr("blip2cap.models.blip2.load.load", load)
    assert invoke("caption", scenes, *SMALL, "-o", "captions/").exit_code == 0
    assert in_work_then == []


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--prompt", "a photo of"], '--prompt was none, now "a photo of"'),
        (["--dtype", "bfloat16"], '--dtype was "float32", now "bfloat16"'),
        (["--limit", "3"], "--limit was none, now 3"),
    ],
)
def test_other_settings_are_refused_by_name(
    scenes: Path, finished: Path, changed: list[str], message: str, flags: list[str]
) -> None:
    before = contents(finished)
    result = invoke("caption", scenes, *TINY, "-o", finished, *changed, *flags)
    assert result.exit_code == 5
    assert f"was made with other settings: {message}. Use another --out.\n" in result.stderr
    assert contents(finished) == before


def test_other_inputs_are_refused(scenes: Path, finished: Path, here: Path) -> None:
    result = invoke("caption", scenes / "more", *TINY, "-o", finished)
    assert (result.exit_code, f'the input root was "{scenes}", now "{scenes}/more"' in result.stderr) == (5, True)
    invoke("caption", scenes / "000.png", *TINY, "-o", "captions/")
    result = invoke("caption", scenes / "001.png", *TINY, "-o", "captions/")
    assert result.exit_code == 5
    assert f'the inputs was ["{scenes}/000.png"], now ["{scenes}/001.png"]' in result.stderr


def test_no_setting_and_no_message_holds_the_secrets_of_a_url(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip2cap.decode.http.PAUSES_S", ())
    url = "http://user:secret@127.0.0.1:1/x.jpg?signature=secret"
    flags = (*TINY, "--allow-http", "-o", "captions/")
    assert invoke("caption", url, *flags).exit_code == 3  # nobody answers there
    again = invoke("caption", url, *flags)
    assert (again.exit_code, "1 already done" in again.stderr) == (3, True)
    for other in (url.replace("user:secret", "user:other"), f"{url}2", f"{url}#x"):
        refused = invoke("caption", other, *flags)
        assert refused.exit_code == 5
        assert 'the inputs was ["http://127.0.0.1:1/x.jpg?... #' in refused.stderr
        assert "secret" not in refused.stderr
    assert "secret" not in str(pq.read_metadata(here / "captions" / "part-00000.parquet").metadata)
    assert "secret" not in str(pq.read_metadata(here / "captions" / ".blip2cap" / "plan").metadata)
    assert "secret" not in invoke("status", "captions/", "--json").stdout


def test_the_one_folder_may_be_named_in_another_way(
    scenes: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scenes)
    assert invoke("caption", ".", *TINY, "-o", finished).exit_code == 0


def test_images_that_came_later_are_not_part_of_the_plan_and_that_is_said(here: Path) -> None:
    images = draw_scenes(here / "images", 1)
    command = ("caption", images, *TINY, "-o", "captions/")
    invoke(*command)
    draw_scenes(images, 1, first_seed=9)
    result = invoke(*command)
    assert result.exit_code == 0
    assert "inputs added later need another --out" in result.stderr
    assert names_in(here / "captions") == ["000.png"]


def test_an_automatic_dtype_is_that_of_the_plan(scenes: Path, here: Path) -> None:
    command = ("caption", scenes, "--model", "tiny", "-o", "captions/", "--part-size", "2")
    invoke(*command, "--dtype", "bfloat16", "--shard", "1/2")
    result = invoke(*command)
    assert result.exit_code == 0
    assert "tiny: bfloat16 on cpu" in result.stderr


def test_paths_on_standard_input_are_listed_once(scenes: Path, here: Path) -> None:
    command = ("caption", "-", *SMALL, "-o", "captions/")
    paths = "".join(f"{scenes}/{name}\n" for name in names_below(scenes)).encode()
    assert invoke(*command, "--shard", "1/3", stdin=paths).exit_code == 0
    assert invoke(*command).exit_code == 0
    assert [Path(name).name for name in names_in(here / "captions")] == [
        Path(name).name for name in names_below(scenes)
    ]


def test_answers_go_to_parts_too_and_other_questions_are_refused(scenes: Path, here: Path) -> None:
    command = ("vqa", scenes, *SMALL, "-o", "answers/")
    assert invoke(*command, "-q", "what?", "-q", "where?").exit_code == 0
    assert [row["question"] for row in rows_in(here / "answers")] == ["what?", "where?"] * 5
    result = invoke(*command, "-q", "what?")
    assert result.exit_code == 5
    assert 'the questions was ["what?", "where?"], now ["what?"]' in result.stderr


def test_failures_keep_the_exit_code_at_3_until_they_are_made_again(here: Path) -> None:
    images = draw_scenes(here / "images", 5)
    whole = (images / "003.png").read_bytes()
    (images / "003.png").write_bytes(whole[:60])
    command = ("caption", images, *SMALL, "-o", "captions/")
    first = invoke(*command)
    assert first.exit_code == 3
    assert "4 ok, 1 failed (truncated)" in first.stderr or "1 truncated" in first.stderr
    again = invoke(*command)
    assert (again.exit_code, "5 already done (1 failed)" in again.stderr) == (3, True)
    assert "1 of 5 images to do, 4 already done" in invoke(*command, "--retry-failed", "--dry-run").stderr
    others = {name: data for name, data in contents(here / "captions").items() if name != "part-00001.parquet"}
    still = invoke(*command, "--retry-failed")
    assert (still.exit_code, "0 ok, 1 failed" in still.stderr, "4 already done" in still.stderr) == (3, True, True)
    (images / "003.png").write_bytes(whole)
    mended = invoke(*command, "--retry-failed")
    assert mended.exit_code == 0
    assert "1 ok, 0 failed, 4 already done" in mended.stderr
    assert names_in(here / "captions") == names_below(images)
    assert others.items() <= contents(here / "captions").items()
    assert in_work(here / "captions") == []


def test_overwrite_never_deletes_a_folder(scenes: Path, finished: Path) -> None:
    before = contents(finished)
    result = invoke("caption", scenes, *TINY, "-o", finished, "--overwrite")
    assert result.exit_code == 2
    assert "a folder is never deleted. Remove it yourself, or use another --out." in result.stderr
    assert contents(finished) == before


def test_a_folder_of_other_things_is_refused_and_left_alone(scenes: Path, here: Path) -> None:
    (here / "notes.txt").touch()
    result = invoke("caption", scenes, *TINY, "-o", here)
    assert result.exit_code == 5
    assert "is not a folder of parts: it has no plan but contains notes.txt" in result.stderr
    assert [path.name for path in here.iterdir()] == ["notes.txt"]


def test_a_folder_of_no_images_leaves_nothing_behind(here: Path) -> None:
    (here / "images").mkdir()
    result = invoke("caption", here / "images", *TINY, "-o", "captions/")
    assert (result.exit_code, "no image found" in result.stderr) == (2, True)
    assert not (here / "captions").exists()


def test_a_dry_run_writes_nothing(scenes: Path, here: Path) -> None:
    result = invoke("caption", scenes, *SMALL, "-o", "captions/", "--dry-run")
    assert (result.exit_code, "5 of 5 images to do; nothing was written" in result.stderr) == (0, True)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_inputs_that_come_past_once_are_refused_by_a_dry_run_too(scenes: Path, here: Path, flags: list[str]) -> None:
    make_tar(here / "images.tar.gz", {"000.png": (scenes / "000.png").read_bytes()}, "w:gz")
    result = invoke("caption", "images.tar.gz", *TINY, "-o", "captions/", *flags)
    assert (result.exit_code, "000.png: comes from a stream" in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_missing_folder_above_the_output_is_refused_by_a_dry_run_too(
    scenes: Path, here: Path, flags: list[str]
) -> None:
    result = invoke("caption", scenes, *TINY, "-o", "nowhere/captions/", *flags)
    assert result.exit_code == 6
    assert "nowhere/captions/ cannot be used" in result.stderr
    assert "Create its parent folder first" in result.stderr
    assert list(here.iterdir()) == []


def test_a_dry_run_says_which_archive_is_damaged(scenes: Path, here: Path) -> None:
    data = (scenes / "000.png").read_bytes()
    tar = make_tar(here / "images.tar", {"000.png": data, "001.png": data})
    tar.write_bytes(tar.read_bytes()[: 1024 + len(data)])
    result = invoke("caption", "images.tar", *TINY, "-o", "captions/", "--dry-run")
    assert (result.exit_code, "images.tar: not read to its end" in result.stderr) == (0, True), result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-o", "captions/", "--part-size", "0"], "--part-size 0: must be 1 or more"),
        (["-o", "captions/", "--shard", "3/2"], "--shard 3/2: must be I/N, with I from 1 to N, like 1/8."),
        (["-o", "captions/", "--shard", "0/2"], "--shard 0/2: must be I/N"),
        (["-o", "captions/", "--shard", "one"], "--shard one: must be I/N"),
        (["-o", "captions.jsonl", "--part-size", "5"], "are for a folder of parts: give --out a name that ends in /."),
        (["-o", "captions.csv"], "must end in .jsonl or .parquet, or in / for a folder of parts"),
        (["-o", "s3://bucket/captions"], "a remote output is a folder of parts. Let its name end in /."),
        (["-o", "ftp://host/captions/"], "Use s3://, gs:// or a local folder."),
    ],
)
def test_wrong_options_are_said(scenes: Path, here: Path, flags: list[str], message: str) -> None:
    result = invoke("caption", scenes, *TINY, *flags)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert list(here.iterdir()) == []


def test_a_full_disk_ends_with_6_and_the_run_goes_on(scenes: Path, finished: Path, here: Path) -> None:
    command = ("caption", scenes, *SMALL, "-o", "captions/")
    shutil.copytree(finished / ".blip2cap", here / "captions" / ".blip2cap")  # there is room for the plan
    largest = max(map(len, contents(finished).values()))
    with files_of_at_most(largest - 1):
        result = invoke(*command)
    assert result.exit_code == 6
    assert "cannot be used: File too large. Existing parts are safe." in result.stderr
    assert len(contents(here / "captions")) < 3
    assert invoke(*command).exit_code == 0
    assert rows_in(here / "captions") == rows_in(finished)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server(monkeypatch, tmp_path / "cache") as url:
        yield url


@pytest.mark.slow
def test_a_bucket_holds_the_same_parts_and_nothing_is_left_on_this_machine(
    scenes: Path, finished: Path, here: Path, bucket: str
) -> None:
    import s3fs

    command = ("caption", scenes, *SMALL, "-o", f"{bucket}captions/")
    assert invoke(*command, "--shard", "1/3").exit_code == 0
    dry = invoke(*command, "--dry-run")
    assert "3 of 5 images to do, 2 already done" in dry.stderr
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    assert "3 ok, 0 failed, 2 already done" in result.stderr
    files = s3fs.S3FileSystem()
    for name, data in contents(finished).items():
        stored = pq.read_table(files.open(f"{bucket}captions/{name}")).to_pylist()
        assert stored == pq.read_table(pyarrow.BufferReader(data)).to_pylist()
    assert [path for path in (here / "cache").rglob("*") if path.is_file()] == []
    assert invoke(*command, "--num-beams", "2").exit_code == 5


@pytest.mark.slow
def test_a_bucket_that_is_not_there_ends_with_6(scenes: Path, here: Path, bucket: str) -> None:
    result = invoke("caption", scenes, *TINY, "-o", "s3://nobody/captions/")
    assert result.exit_code == 6
    assert "The specified bucket does not exist" in result.stderr
    assert "loading" not in result.stderr


def num_rows_in_work(folder: Path) -> int:
    """Count the rows of parts that do not exist yet."""
    done = {Path(name).stem for name in contents(folder)}
    journals = (path for path in in_work(folder) if path.suffix == ".jsonl" and path.stem not in done)
    return sum(path.read_bytes().count(b"\n") for path in journals)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGKILL, -9), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_a_run_that_ends_in_the_middle_of_a_part_goes_on_where_it_was(
    here: Path, number: signal.Signals, exit_code: int
) -> None:
    images = draw_scenes(here / "images", 60)
    command = ("caption", images, *TINY, "--part-size", "20", "--batch-size", "2", "-o", "captions/")
    process = start(*command, cwd=here)
    wait_until(lambda: len(contents(here / "captions")) == 1 and num_rows_in_work(here / "captions") > 2, process)
    process.send_signal(number)
    _, stderr = finish(process)
    assert process.returncode == exit_code, stderr
    done = sum(pq.read_metadata(path).num_rows for path in (here / "captions").glob("part-*.parquet"))
    there = done + num_rows_in_work(here / "captions")
    assert 22 < there < 60
    result = invoke(*command)
    assert result.exit_code == 0
    assert f"{60 - there} ok, 0 failed, {there} already done" in result.stderr
    assert names_in(here / "captions") == names_below(images)
    assert in_work(here / "captions") == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_image_that_kills_its_process_ends_as_a_failed_row(here: Path) -> None:
    images = draw_scenes(here / "images", 12)
    (images / "007.png").write_bytes(crashing.picture(crashing.KILLED))
    command = ["caption", str(images), *TINY, "--part-size", "5", "--batch-size", "2", "-o", "captions/"]
    program = [sys.executable, "-m", "tests.crashing"]
    env = {**os.environ, "PYTHONPATH": str(Path(crashing.__file__).parent.parent)}
    codes = [subprocess.run([*program, *command], check=False, cwd=here, env=env).returncode for _ in range(2)]
    assert codes == [-signal.SIGKILL, 3]
    rows = rows_in(here / "captions")
    assert [row["file_name"] for row in rows] == names_below(images)
    assert {row["file_name"]: row["error"] for row in rows if row["error"]} == {"007.png": "decoder_crashed"}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_three_processes_share_one_output_and_every_part_is_there_once(here: Path, where: str, bucket: str) -> None:
    images = draw_scenes(here / "images", 120)
    out = "captions/" if where == "folder" else f"{bucket}captions/"
    command = ("caption", images, *TINY, "--part-size", "10", "--batch-size", "2", "-o", out, "--json")
    processes = [start(*command, cwd=here) for _ in range(3)]
    facts = []
    for process in processes:
        stdout, stderr = finish(process)
        assert process.returncode == 0, stderr
        facts.append(json.loads(stdout))
    assert sum(fact["rows_ok"] for fact in facts) == 120 + 10 * sum(fact["parts_lost"] for fact in facts)
    assert all(fact["parts_there"] == 12 for fact in facts)
    if where == "folder":
        assert names_in(here / "captions") == names_below(images)
        assert sum(fact["rows_ok"] > 0 for fact in facts) > 1
        assert sum(fact["parts_lost"] for fact in facts) == 0
    status = invoke("status", out)
    assert (status.exit_code, "120 ok, 0 failed, 0 missing, 12 of 12 parts" in status.stdout) == (0, True)


def test_every_option_of_the_source_is_part_of_the_plan(finished: Path) -> None:
    from dataclasses import fields

    from blip2cap.options import SourceOptions
    from blip2cap.outputs.parts.plan import read_plan
    from blip2cap.outputs.parts.store import LocalStore

    plan = read_plan(LocalStore(str(finished)))
    assert plan is not None
    no_part_of_it = {"max_bytes"}  # what is larger becomes a failed row
    assert {field.name for field in fields(SourceOptions)} - plan.manifest.settings.keys() == no_part_of_it
    assert "part_size" not in plan.manifest.settings
    assert os.path.exists(finished / ".blip2cap" / "plan")
