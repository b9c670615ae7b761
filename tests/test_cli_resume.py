from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.commands import TINY, draw_scenes, finish, invoke, names_below, num_lines, read_rows, start, wait_until
from tests.full_disk import files_of_at_most

OUT = "captions.jsonl"


def names(path: Path) -> list[str]:
    return [row["file_name"] for row in read_rows(path)]


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the output of a complete run over `scenes`. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    assert invoke("caption", scenes, *TINY, "-o", folder / OUT).exit_code == 0
    return folder


@pytest.fixture
def half(finished: Path, here: Path) -> Path:
    """A current folder whose output holds two of the five rows."""
    shutil.copytree(finished, here, dirs_exist_ok=True)
    (here / OUT).write_bytes(b"".join((finished / OUT).read_bytes().splitlines(keepends=True)[:2]))
    return here


def manifest(folder: Path) -> dict[str, object]:
    settings: dict[str, object] = json.loads((folder / f"{OUT}.run.json").read_text())["settings"]
    return settings


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_was_killed_goes_on_and_gives_each_row_once(here: Path) -> None:
    images = draw_scenes(here / "images", 80, size=(160, 120))
    command = ("caption", images, *TINY, "--batch-size", "4")
    process = start(*command, cwd=here)
    wait_until(lambda: num_lines(here / OUT) >= 12, process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    before = num_lines(here / OUT)
    assert process.returncode == -signal.SIGKILL
    assert 12 <= before < 80
    result = invoke(*command)
    assert result.exit_code == 0
    assert f"{80 - before} ok, 0 failed, {before} already done" in result.stderr
    assert names(here / OUT) == names_below(images)


def test_the_same_command_again_does_what_is_missing_and_the_rows_are_the_same(
    scenes: Path, finished: Path, half: Path
) -> None:
    result = invoke("caption", scenes, *TINY)
    assert result.exit_code == 0
    assert "3 ok, 0 failed, 2 already done" in result.stderr
    assert (half / OUT).read_bytes() == (finished / OUT).read_bytes()


def test_a_finished_run_again_changes_nothing(scenes: Path, finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    result = invoke("caption", scenes, *TINY, "-o", finished / OUT)
    assert (result.exit_code, "5 already done, nothing to do" in result.stderr) == (0, True)
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.parametrize("cut", [1, 60, 150])
def test_a_torn_tail_is_cut_said_and_done_again(scenes: Path, finished: Path, half: Path, cut: int) -> None:
    content = (finished / OUT).read_bytes()
    (half / OUT).write_bytes(content[:-cut])
    result = invoke("caption", scenes, *TINY)
    assert result.exit_code == 0
    assert "removed a torn last line of" in result.stderr
    assert (half / OUT).read_bytes() == content


def test_images_that_came_later_are_added(here: Path) -> None:
    images = draw_scenes(here / "images", 2)
    invoke("caption", images, *TINY)
    draw_scenes(images, 1, first_seed=9)
    (images / "000.png").rename(images / "999.png")
    invoke("caption", images, *TINY)
    assert names(here / OUT) == ["000.png", "001.png", "009.png", "999.png"]


def test_failed_rows_stay_and_keep_the_exit_code_at_3(here: Path) -> None:
    images = draw_scenes(here / "images", 1)
    (images / "bad.png").write_bytes(b"")
    assert invoke("caption", images, *TINY).exit_code == 3
    result = invoke("caption", images, *TINY)
    assert result.exit_code == 3
    assert "2 already done (1 failed), nothing to do" in result.stderr


def test_a_larger_limit_goes_on_from_a_smaller_one(scenes: Path, here: Path) -> None:
    for limit in ("1", "3"):
        invoke("caption", scenes, *TINY, "--limit", limit)
        assert names(here / OUT) == names_below(scenes)[: int(limit)]


def test_batch_size_and_threads_may_change(scenes: Path, half: Path) -> None:
    assert invoke("caption", scenes, *TINY, "--batch-size", "1", "--threads", "1").exit_code == 0
    assert names(half / OUT) == names_below(scenes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--prompt", "a photo of"], '--prompt was none, now "a photo of"'),
        (["--num-beams", "3"], "--num-beams was 1, now 3"),
        (["--max-new-tokens", "4", "--seed", "5"], "--max-new-tokens was 30, now 4"),
        (["--temperature", "0.5"], "--temperature was none, now 0.5"),
        (["--dtype", "bfloat16"], '--dtype was "float32", now "bfloat16"'),
        (["--quantize", "int8-dynamic"], '--quantize was none, now "int8-dynamic"'),
        (["--loop-guard"], "--loop-guard was false, now true"),
        (["--trim-sentence"], "--trim-sentence was false, now true"),
        (["--strip", "a", "--strip", "the"], '--strip was none, now ["a", "the"]'),
    ],
)
def test_settings_that_change_a_text_are_refused_by_name_with_both_values(
    scenes: Path, half: Path, changed: list[str], message: str
) -> None:
    before = (half / OUT).read_bytes()
    result = invoke("caption", scenes, *TINY, *changed)
    assert result.exit_code == 5
    assert f"{OUT} was made with other settings: {message}" in result.stderr
    assert "Give those again, or use another --out." in result.stderr
    assert "loading" not in result.stderr
    assert (half / OUT).read_bytes() == before


def test_another_input_folder_is_refused_with_both_folders(scenes: Path, half: Path) -> None:
    result = invoke("caption", scenes / "more", *TINY)
    assert result.exit_code == 5
    assert f'the input root was "{scenes}", now "{scenes}/more"' in result.stderr


def test_an_output_of_another_command_is_refused_with_the_command_alone(scenes: Path, half: Path) -> None:
    result = invoke("vqa", scenes, *TINY, "-q", "what?", "-o", OUT)
    assert result.exit_code == 5
    assert 'other settings: the command was "caption", now "vqa". Give' in result.stderr


def test_overwrite_replaces_rows_and_settings(scenes: Path, half: Path) -> None:
    result = invoke("caption", scenes, *TINY, "--prompt", "a", "--overwrite")
    assert result.exit_code == 0
    assert "already done" not in result.stderr
    assert names(half / OUT) == names_below(scenes)
    assert manifest(half)["prompt"] == "a"


def test_an_automatic_dtype_goes_on_with_the_one_of_the_rows(scenes: Path, here: Path) -> None:
    invoke("caption", scenes, *TINY, "--dtype", "bfloat16", "--limit", "1")
    result = invoke("caption", scenes, "--model", "tiny")
    assert result.exit_code == 0
    assert "tiny: bfloat16 on cpu" in result.stderr
    assert manifest(here)["dtype"] == "bfloat16"
    assert names(here / OUT) == names_below(scenes)


def test_rows_from_before_there_was_quantising_go_on_without_it_only(scenes: Path, half: Path) -> None:
    path = half / f"{OUT}.run.json"
    content = json.loads(path.read_text())
    del content["settings"]["quantize"]
    path.write_text(json.dumps(content))
    refused = invoke("caption", scenes, *TINY, "--quantize", "int8-dynamic", "--dry-run")
    assert refused.exit_code == 5
    assert '--quantize was none, now "int8-dynamic"' in refused.stderr
    assert invoke("caption", scenes, *TINY).exit_code == 0
    assert names(half / OUT) == names_below(scenes)


def test_rows_with_and_without_flags_never_mix(scenes: Path, here: Path) -> None:
    guarded = ("caption", scenes, *TINY, "--loop-guard", "--strip", "two")
    assert invoke(*guarded, "--limit", "2").exit_code == 0
    before = (here / OUT).read_bytes()
    for command in (("caption", scenes, *TINY), ("caption", scenes, *TINY, "--loop-guard", "--strip", "one")):
        for flags in ([], ["--dry-run"]):
            assert invoke(*command, *flags).exit_code == 5
    assert (here / OUT).read_bytes() == before
    assert invoke(*guarded).exit_code == 0
    assert ["flag" in row for row in read_rows(here / OUT)] == [True] * 5


def test_rows_from_before_there_were_rules_for_texts_go_on_without_them_only(scenes: Path, half: Path) -> None:
    path = half / f"{OUT}.run.json"
    content = json.loads(path.read_text())
    for name in ("loop_guard", "trim_sentence", "strip"):
        del content["settings"][name]
    path.write_text(json.dumps(content))
    assert invoke("caption", scenes, *TINY, "--loop-guard").exit_code == 5
    assert invoke("caption", scenes, *TINY).exit_code == 0
    assert names(half / OUT) == names_below(scenes)


def test_an_output_that_another_run_writes_is_refused(scenes: Path, half: Path) -> None:
    with open(half / OUT, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = invoke("caption", scenes, *TINY)
        dry = invoke("caption", scenes, *TINY, "--dry-run")
    assert result.exit_code == 5
    assert f"{OUT} is being written by another blip2cap run. Wait for it, or use another --out." in result.stderr
    assert dry.exit_code == 0


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_damage_in_the_middle_is_refused_with_its_line(scenes: Path, half: Path, flags: list[str]) -> None:
    first, second = (half / OUT).read_bytes().splitlines(keepends=True)
    (half / OUT).write_bytes(first + second[10:] + second)
    before = (half / OUT).read_bytes()
    result = invoke("caption", scenes, *TINY, *flags)
    assert result.exit_code == 5
    assert f"{OUT}:2 is damaged" in result.stderr
    assert (half / OUT).read_bytes() == before


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_damaged_manifest_is_refused(scenes: Path, half: Path, flags: list[str]) -> None:
    (half / f"{OUT}.run.json").write_text("{")
    result = invoke("caption", scenes, *TINY, *flags)
    assert result.exit_code == 5
    assert f"{OUT}.run.json is damaged" in result.stderr


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_rows_without_a_manifest_are_refused(scenes: Path, half: Path, flags: list[str]) -> None:
    (half / f"{OUT}.run.json").unlink()
    result = invoke("caption", scenes, *TINY, *flags)
    assert result.exit_code == 5
    assert f"its manifest {OUT}.run.json does not" in result.stderr


def test_a_full_disk_ends_with_6_keeps_whole_rows_and_the_run_goes_on(scenes: Path, finished: Path, here: Path) -> None:
    command = ("caption", scenes, *TINY, "--batch-size", "2")
    size = os.path.getsize(finished / OUT)
    with files_of_at_most(size - 1):
        result = invoke(*command)
    assert result.exit_code == 6
    assert f"{OUT} cannot be written: File too large. Its rows so far are safe" in result.stderr
    safe = names(here / OUT)
    assert 0 < len(safe) < 5
    assert safe == names_below(scenes)[: len(safe)]
    assert invoke(*command).exit_code == 0
    assert (here / OUT).read_bytes() == (finished / OUT).read_bytes()
