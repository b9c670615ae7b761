from __future__ import annotations

import fcntl
import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.commands import TINY, draw_scenes, finish, invoke, names_below, num_lines, start, wait_until
from tests.outputs import rows_of
from tests.rows import left_in

OUT = "captions.parquet"


def names(path: Path) -> list[str]:
    return [row["file_name"] for row in rows_of(path)]


def test_a_run_ends_with_a_parquet_file_that_says_how_it_was_made(scenes: Path, here: Path) -> None:
    result = invoke("caption", scenes, *TINY, "-o", OUT)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"{OUT}: 5 ok, 0 failed" in result.stderr
    assert left_in(here) == [OUT]
    assert names(here / OUT) == names_below(scenes)
    manifest = json.loads(pq.read_schema(here / OUT).metadata[b"blip2cap"])
    assert (manifest["settings"]["model"], manifest["counts"]) == ("tiny", {"ok": 5, "failed": {}})


def test_its_rows_are_those_of_the_jsonl(scenes: Path, here: Path) -> None:
    (here / "bad.png").write_bytes(b"")
    for options in ([], ["--num-captions", "2", "--num-beams", "2"]):
        for out in (OUT, "captions.jsonl"):
            assert invoke("caption", scenes, "bad.png", *TINY, *options, "-o", out, "--overwrite").exit_code == 3
        assert rows_of(here / OUT) == rows_of(here / "captions.jsonl")


def test_answers_too(scenes: Path, here: Path) -> None:
    for out in ("answers.parquet", "answers.jsonl"):
        assert invoke("vqa", scenes, *TINY, "-q", "what?", "-q", "where?", "-o", out).exit_code == 0
    assert rows_of(here / "answers.parquet") == rows_of(here / "answers.jsonl")


def test_images_that_come_later_and_a_larger_limit_are_added(here: Path) -> None:
    images = draw_scenes(here / "images", 3)
    for limit, count in (("1", 1), ("2", 2), ("9", 3)):
        result = invoke("caption", images, *TINY, "-o", OUT, "--limit", limit)
        assert f"1 ok, 0 failed, {count - 1} already done".removesuffix(", 0 already done") in result.stderr
    draw_scenes(images, 1, first_seed=7)
    invoke("caption", images, *TINY, "-o", OUT)
    assert names(here / OUT) == ["000.png", "001.png", "002.png", "007.png"]


def test_a_finished_run_again_changes_nothing_and_imports_no_torch(scenes: Path, here: Path) -> None:
    invoke("caption", scenes, *TINY, "-o", OUT)
    before = (here / OUT).stat().st_mtime_ns, (here / OUT).read_bytes()
    result = invoke("caption", scenes, *TINY, "-o", OUT)
    assert (result.exit_code, "5 already done, nothing to do" in result.stderr) == (0, True)
    assert ((here / OUT).stat().st_mtime_ns, (here / OUT).read_bytes()) == before
    assert left_in(here) == [OUT]


def test_failed_rows_stay_and_keep_the_exit_code_at_3(here: Path) -> None:
    images = draw_scenes(here / "images", 1)
    (images / "bad.png").write_bytes(b"")
    for _ in range(2):
        assert invoke("caption", images, *TINY, "-o", OUT).exit_code == 3
    assert [row["status"] for row in rows_of(here / OUT)] == ["ok", "failed"]


def test_a_dry_run_counts_and_writes_nothing(scenes: Path, here: Path) -> None:
    invoke("caption", scenes, *TINY, "-o", OUT, "--limit", "2")
    before = (here / OUT).stat().st_mtime_ns, (here / OUT).read_bytes()
    result = invoke("caption", scenes, *TINY, "-o", OUT, "--dry-run")
    assert f"{OUT}: 3 of 5 images to do, 2 already done; nothing was written" in result.stderr
    assert invoke("caption", scenes, *TINY, "-o", OUT, "--dry-run", "--prompt", "a").exit_code == 5
    assert ((here / OUT).stat().st_mtime_ns, (here / OUT).read_bytes()) == before
    assert left_in(here) == [OUT]


def test_other_settings_are_refused_and_overwrite_replaces_them(scenes: Path, here: Path) -> None:
    invoke("caption", scenes, *TINY, "-o", OUT, "--limit", "2")
    refused = invoke("caption", scenes, *TINY, "-o", OUT, "--prompt", "a")
    assert refused.exit_code == 5
    assert f'{OUT} was made with other settings: --prompt was none, now "a"' in refused.stderr
    assert "loading" not in refused.stderr
    assert invoke("caption", scenes, *TINY, "-o", OUT, "--prompt", "a", "--overwrite").exit_code == 0
    assert names(here / OUT) == names_below(scenes)


def test_an_automatic_dtype_goes_on_with_the_one_of_the_rows(scenes: Path, here: Path) -> None:
    invoke("caption", scenes, *TINY, "-o", OUT, "--dtype", "bfloat16", "--limit", "1")
    result = invoke("caption", scenes, "--model", "tiny", "-o", OUT)
    assert (result.exit_code, "tiny: bfloat16 on cpu" in result.stderr) == (0, True)


def test_a_file_that_is_not_ours_is_refused(scenes: Path, here: Path) -> None:
    (here / OUT).write_bytes(b"my notes")
    for options in ([], ["--dry-run"]):
        result = invoke("caption", scenes, *TINY, "-o", OUT, *options)
        assert (result.exit_code, f"{OUT} is damaged" in result.stderr) == (5, True)
    assert (here / OUT).read_bytes() == b"my notes"


def test_an_output_that_another_run_writes_is_refused(scenes: Path, here: Path) -> None:
    with open(here / f"{OUT}.jsonl", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = invoke("caption", scenes, *TINY, "-o", OUT)
    assert result.exit_code == 5
    assert "is being written by another blip2cap run" in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGKILL])
def test_a_run_that_was_stopped_or_killed_goes_on(here: Path, number: signal.Signals) -> None:
    images = draw_scenes(here / "images", 30)
    command = ("caption", images, *TINY, "--batch-size", "1", "-o", OUT)
    journal = here / f"{OUT}.jsonl"
    process = start(*command, cwd=here)
    wait_until(lambda: num_lines(journal) >= 3, process)
    process.send_signal(number)
    finish(process)
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    before = num_lines(journal)
    assert 3 <= before < 30
    assert not os.path.exists(here / OUT)
    result = invoke(*command)
    assert (result.exit_code, f"{before} already done" in result.stderr) == (0, True)
    assert names(here / OUT) == names_below(images)
    assert left_in(here) == [OUT, "images"]
