from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.commands import TINY, draw_scenes, invoke
from tests.outputs import rows_of


@pytest.fixture(params=["captions.jsonl", "captions.parquet"])
def out(request: pytest.FixtureRequest, here: Path) -> Path:
    """An output with a good row, two failed ones and a good one; now one of the bad images is mended."""
    images = draw_scenes(here / "images", 4)
    for name in ("001.png", "002.png"):
        shutil.move(images / name, here / name)
        (images / name).write_bytes(b"")
    out = here / str(request.param)
    assert invoke("caption", "images", *TINY, "-o", out).exit_code == 3
    shutil.move(here / "001.png", images / "001.png")
    return out


def statuses(out: Path) -> dict[str, str]:
    rows = rows_of(out)
    assert Counter(row["file_name"] for row in rows) == Counter(f"00{number}.png" for number in range(4))
    return {row["file_name"]: row["error"] or row["status"] for row in rows}


def test_failed_images_are_done_again_and_good_ones_are_not(out: Path) -> None:
    before = {row["file_name"]: row for row in rows_of(out)}
    result = invoke("caption", "images", *TINY, "-o", out, "--retry-failed")
    assert result.exit_code == 3
    assert ": 1 ok, 1 failed (1 truncated), 2 already done" in result.stderr
    assert statuses(out) == {"000.png": "ok", "001.png": "ok", "002.png": "truncated", "003.png": "ok"}
    after = {row["file_name"]: row for row in rows_of(out)}
    assert after["000.png"] == before["000.png"]
    shutil.move(out.parent / "002.png", out.parent / "images" / "002.png")
    assert invoke("caption", "images", *TINY, "-o", out, "--retry-failed").exit_code == 0
    assert {*statuses(out).values()} == {"ok"}


def test_failed_rows_of_images_that_are_not_asked_for_now_stay_and_do_not_count(out: Path) -> None:
    before = statuses(out)
    result = invoke("caption", "images", *TINY, "-o", out, "--retry-failed", "--include", "002.png")
    assert result.exit_code == 3
    assert statuses(out) == before
    result = invoke("caption", "images", *TINY, "-o", out, "--retry-failed", "--include", "001.png")
    assert (result.exit_code, "1 failed row of other inputs, kept" in result.stderr) == (0, True)
    assert statuses(out) == before | {"001.png": "ok"}
    (out.parent / "images" / "002.png").unlink()
    assert invoke("caption", "images", *TINY, "-o", out, "--retry-failed").exit_code == 0
    assert statuses(out) == before | {"001.png": "ok"}
    paths = b"images/001.png\n"
    assert invoke("caption", "-", *TINY, "-o", out, "--retry-failed", "--dry-run", stdin=paths).exit_code == 5  # a root


def test_who_may_read_an_output_stays_as_it_was(out: Path) -> None:
    out.chmod(0o600)
    invoke("caption", "images", *TINY, "-o", out, "--retry-failed")
    assert out.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("out_name", ["table.parquet", "list.jsonl"])
def test_an_input_is_never_written_over(here: Path, scenes: Path, out_name: str) -> None:
    (here / out_name).write_text(f"{scenes}/000.png\n")
    if out_name == "table.parquet":
        pq.write_table(pa.table({"image": [(scenes / "000.png").read_bytes()]}), here / out_name)
    given = [out_name] if out_name == "table.parquet" else ["--files-from", out_name]
    before = (here / out_name).read_bytes()
    for more in ([], ["--overwrite"], ["--dry-run"]):
        result = invoke("caption", *given, *TINY, "-o", f"./{out_name}", *more)
        assert (result.exit_code, "would replace the input" in result.stderr) == (2, True), result.stderr
    assert (here / out_name).read_bytes() == before


def test_without_the_option_they_stay_and_the_summary_names_it(out: Path) -> None:
    result = invoke("caption", "images", *TINY, "-o", out)
    assert result.exit_code == 3
    assert result.stderr.endswith("4 already done (2 failed), nothing to do; --retry-failed retries failed ones\n")
    assert list(statuses(out).values()).count("truncated") == 2


def test_a_dry_run_counts_them_as_to_do_and_writes_nothing(out: Path) -> None:
    before = {path.name: path.read_bytes() for path in out.parent.iterdir() if path.is_file()}
    result = invoke("caption", "images", *TINY, "-o", out, "--retry-failed", "--dry-run", "--json")
    facts = json.loads(result.stdout)
    assert (facts["images_to_do"], facts["rows_there_before"], facts["rows_failed_before"]) == (2, 2, 0)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir() if path.is_file()} == before
    facts = json.loads(invoke("caption", "images", *TINY, "-o", out, "--dry-run", "--json").stdout)
    assert (facts["images_to_do"], facts["rows_there_before"], facts["rows_failed_before"]) == (0, 4, 2)


def test_where_nothing_has_failed_nothing_is_done(scenes: Path, here: Path) -> None:
    invoke("caption", scenes, *TINY)
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    result = invoke("caption", scenes, *TINY, "--retry-failed")
    assert (result.exit_code, "5 already done, nothing to do" in result.stderr) == (0, True)
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def test_other_settings_are_refused_before_a_failed_row_goes(out: Path) -> None:
    before = out.read_bytes()
    assert invoke("caption", "images", *TINY, "-o", out, "--retry-failed", "--prompt", "a").exit_code == 5
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--overwrite"], "--overwrite and --retry-failed exclude each other"),
        (["-o", "-"], "--retry-failed and --out - exclude each other"),
    ],
)
def test_what_it_excludes_is_said(scenes: Path, here: Path, arguments: list[str], message: str) -> None:
    result = invoke("caption", scenes, *TINY, "--retry-failed", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_failed_answers_are_asked_for_again(here: Path) -> None:
    images = draw_scenes(here / "images", 2)
    good = (images / "001.png").read_bytes()
    (images / "001.png").write_bytes(b"")
    command = ("vqa", "images", *TINY, "-q", "what?", "-q", "where?")
    assert invoke(*command).exit_code == 3
    (images / "001.png").write_bytes(good)
    result = invoke(*command, "--retry-failed")
    assert (result.exit_code, "2 ok, 0 failed, 2 already done" in result.stderr) == (0, True)
    assert Counter((row["file_name"], row["question"]) for row in rows_of(here / "answers.jsonl")) == Counter(
        (name, question) for name in ("000.png", "001.png") for question in ("what?", "where?")
    )
