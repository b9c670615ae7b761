"""The exit code is about what was asked for; failed rows of other inputs are named, and can be removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import TINY, draw_scenes, invoke
from tests.outputs import rows_of
from tests.rows import row


@pytest.fixture(params=["captions.jsonl", "captions.parquet"])
def out(request: pytest.FixtureRequest, here: Path) -> str:
    """An output of two images and two sidecars, which a glob has caught."""
    draw_scenes(here / "images", 2)
    for name in ("000.txt", "001.txt"):
        (here / "images" / name).write_text("a caption")
    paths = sorted((here / "images").iterdir())
    assert invoke("caption", *(path.relative_to(here) for path in paths), *TINY, "-o", request.param).exit_code == 3
    return str(request.param)


GIVEN = ("caption", "images/000.png", "images/001.png", *TINY)


def test_failed_rows_of_what_was_not_asked_for_are_named_and_leave_the_exit_code_at_0(out: str) -> None:
    result = invoke(*GIVEN, "-o", out)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        f"{out}: 2 already done, nothing to do",
        f"{out}: 2 failed rows of other inputs, kept; blip2cap status {out} --prune removes failed rows",
    ]
    result = invoke(*GIVEN, "-o", out, "--retry-failed", "--json")
    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["rows_failed_before"], facts["rows_failed_not_asked"]) == (0, 0, 2)
    assert len(rows_of(Path(out))) == 4


def test_those_that_were_asked_for_count_and_only_those(out: str) -> None:
    for more in ([], ["--dry-run"]):
        result = invoke(*GIVEN, "images/001.txt", "-o", out, "--json", *more)
        facts = json.loads(result.stdout)
        assert (facts["rows_failed_before"], facts["rows_failed_not_asked"]) == (1, 1)
    assert invoke(*GIVEN, "images/001.txt", "-o", out).exit_code == 3
    assert invoke(*GIVEN, "images/001.txt", "-o", out, "--limit", "2").exit_code == 0


def test_prune_removes_failed_rows_and_changes_no_other(out: str) -> None:
    before = [row for row in rows_of(Path(out)) if row["status"] == "ok"]
    assert invoke("status", out).exit_code == 3
    result = invoke("status", out, "--prune")
    assert (result.exit_code, result.stderr) == (0, f"{out}: 2 failed rows removed\n")
    assert "2 ok, 0 failed" in result.stdout
    assert rows_of(Path(out)) == before
    assert invoke("status", out, "--prune").stderr == f"{out}: 0 failed rows removed\n"
    result = invoke(*GIVEN, "-o", out)
    assert (result.exit_code, result.stderr) == (0, f"{out}: 2 already done, nothing to do\n")


def test_an_image_whose_row_was_removed_is_tried_again(out: str) -> None:
    invoke("status", out, "--prune")
    draw_scenes(Path("more"), 1)
    Path("more/000.png").rename("images/001.txt")
    result = invoke(*GIVEN, "images/001.txt", "-o", out)
    assert (result.exit_code, "1 ok, 0 failed, 2 already done" in result.stderr) == (0, True)


def test_prune_is_refused_where_rows_must_stay(here: Path, scenes: Path) -> None:
    assert invoke("caption", scenes, *TINY, "-o", "parts/").exit_code == 0
    result = invoke("status", "parts/", "--prune")
    assert (result.exit_code, "with --retry-failed" in result.stderr) == (2, True)
    (here / "export.jsonl").write_bytes(row(1).as_json())
    result = invoke("status", "export.jsonl", "--prune")
    assert (result.exit_code, "has no manifest" in result.stderr) == (2, True)


def test_retry_only_retries_the_images_that_failed_for_a_reason(out: str) -> None:
    command = ("caption", "images/000.png", "images/000.txt", "images/001.txt", *TINY, "-o", out)
    assert "already done (2 failed), nothing to do" in invoke(*command, "--retry-only", "truncated").stderr
    Path("images/000.txt").write_bytes(b"")
    assert "1 ok" not in invoke(*command, "--retry-only", "not_an_image").stderr
    assert {row["file_name"]: row["error"] for row in rows_of(Path(out))} == {
        "images/000.png": "",
        "images/001.png": "",
        "images/000.txt": "truncated",
        "images/001.txt": "not_an_image",
    }
    draw_scenes(Path("more"), 1)
    Path("more/000.png").rename("images/000.txt")
    result = invoke(*command, "--retry-only", "truncated", "--json")
    facts = json.loads(result.stdout)
    assert (facts["rows_ok"], facts["rows_failed"], facts["rows_failed_before"]) == (1, 0, 1)
    assert result.exit_code == 3
    result = invoke(*command, "--retry-only", "burnt")
    assert (result.exit_code, "--retry-only burnt: must be one of corrupt, " in result.stderr) == (2, True)


def test_retry_only_works_in_parts_too(here: Path) -> None:
    images = draw_scenes(here / "images", 3)
    good = (images / "000.png").read_bytes()
    (images / "000.png").write_bytes(b"")
    (images / "001.png").write_bytes(b"no image")
    command = ("caption", "images", *TINY, "-o", "parts/")
    assert invoke(*command).exit_code == 3
    for name in ("000.png", "001.png"):
        (images / name).write_bytes(good)
    result = invoke(*command, "--retry-only", "truncated", "--dry-run", "--json")
    facts = json.loads(result.stdout)
    assert (facts["rows_to_do"], facts["rows_failed_before"]) == (1, 1)
    assert invoke(*command, "--retry-only", "truncated").exit_code == 3
    rows = {row["file_name"]: row["error"] for row in rows_of(here / "parts/part-00000.parquet")}
    assert rows == {"000.png": "", "001.png": "not_an_image", "002.png": ""}
    assert invoke(*command, "--retry-only", "not_an_image").exit_code == 0
