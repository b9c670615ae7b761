"""Runs of `match` and `embed` that are killed and continued, with the small model of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from blip2cap.outputs.open import open_rows
from tests.commands import draw_scenes, finish, invoke, num_lines, start, wait_until

MODEL = ("-m", "tiny-itm", "--dtype", "float32", "--batch-size", "2")
COMMANDS = {
    "embed": ("embed", "images", *MODEL, "--what", "queries", "--precision", "float16"),
    "match": ("match", "images", *MODEL, "--captions", "captions.csv"),
}


@pytest.mark.long
@pytest.mark.parametrize("command", [*COMMANDS])
@pytest.mark.parametrize("out", ["rows.jsonl", "rows.parquet", "rows/"])
def test_a_killed_run_is_continued_and_its_rows_equal_those_of_an_undisturbed_one(
    command: str, out: str, here: Path
) -> None:
    draw_scenes(here / "images", 40)
    lines = [f"{number:03}.png,{text}" for number in range(40) for text in ("a red boat", f"{number} cars")]
    (here / "captions.csv").write_text("\n".join(("file_name,text", *lines, "")))
    arguments = (*COMMANDS[command], "-o", out, *(("--part-size", "15") if out == "rows/" else ()))
    process = start(*arguments, cwd=here)

    def has_rows() -> bool:
        return sum(num_lines(path) for path in here.rglob("*.jsonl")) >= 8

    wait_until(has_rows, process)
    process.kill()
    finish(process)
    assert invoke(*arguments).exit_code == 0
    assert invoke(*COMMANDS[command], "-o", "undisturbed.jsonl").exit_code == 0
    found, expected = list(open_rows(out)), list(open_rows("undisturbed.jsonl"))
    assert [row.key for row in found] == [row.key for row in expected]
    for one, other in zip(found, expected, strict=True):
        if command == "embed":
            assert np.allclose(one["embedding"], other["embedding"], atol=1e-3)
        else:
            assert (one["itm"], one["itc"]) == pytest.approx((other["itm"], other["itc"]), abs=1e-5)
