from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from blip2cap.options import SourceOptions
from blip2cap.outputs.stream import StreamSink
from blip2cap.rows import Row  # noqa
from blip2cap.source.inputs import Source
from tests.checkpoints import make_checkpoint
from tests.commands import TINY, draw_scenes, finish, invoke, names_below, read_rows, start, take_one_line
from tests.rows import text_row

COLUMNS = {
    "file_name": str,
    "file_name_b64": str,
    "text": str,
    "status": str,
    "error": str,
    "finish_reason": str,
    "num_tokens": int,
    "width": int,
    "height": int,
}


def test_rows_have_the_same_columns_and_types_in_the_same_order(scenes: Path, here: Path) -> None:
    (here / "bad.png").write_bytes(b"no image")
    result = invoke("caption", scenes, "bad.png", *TINY)
    rows = read_rows(here / "captions.jsonl")
    assert result.exit_code == 3
    assert [{name: type(value) for name, value in row.items()} for row in rows] == [COLUMNS] * 6
    assert [list(row) for row in rows] == [list(COLUMNS)] * 6
    good, bad = rows[0], rows[-1]
    assert (good["status"], good["error"], good["width"], good["height"]) == ("ok", "", 64, 48)
    assert good["finish_reason"] in ("stop", "length")
    assert (bad["file_name"], bad["text"], bad["status"], bad["error"]) == ("bad.png", "", "failed", "not_an_image")
    assert (bad["finish_reason"], bad["num_tokens"], bad["width"], bad["height"]) == ("", 0, 0, 0)


def test_several_captions_add_one_column(scenes: Path, here: Path) -> None:
    invoke("caption", scenes, *TINY, "--num-captions", "2", "--num-beams", "2")
    for row in read_rows(here / "captions.jsonl"):
        assert list(row)[2:4] == ["text", "texts"]
        assert [type(text) for text in row["texts"]] == [str, str]
        assert row["texts"][0] == row["text"]


def test_the_loop_guard_adds_one_column_in_every_row_and_says_what_it_did(scenes: Path, here: Path) -> None:
    (here / "bad.png").write_bytes(b"no image")
    result = invoke("caption", scenes, "bad.png", *TINY, "--loop-guard")
    rows = read_rows(here / "captions.jsonl")
    with_flag = [*list(COLUMNS)[:6], "flag", *list(COLUMNS)[6:]]
    assert [list(row) for row in rows] == [with_flag] * 6
    assert {row["flag"] for row in rows} == {""}
    assert "5 ok, 1 failed (1 not_an_image), 0 retried, 0 flagged" in result.stderr


def test_a_text_that_loops_is_made_again_and_counted(scenes: Path, here: Path) -> None:
    model = ("--model", make_checkpoint(here / "model", "opt"), "--dtype", "float32", "--device", "cpu")
    images = draw_scenes(here / "images", 12)
    facts = json.loads(invoke("caption", images, *model, "--loop-guard", "--json").stdout)
    flags = [row["flag"] for row in read_rows(here / "captions.jsonl")]
    assert flags.count("retried") == facts["rows_retried"] > 0
    assert len(flags) - flags.count("") - flags.count("retried") == facts["rows_flagged"]
    assert sum(facts["flagged_by_fault"].values()) == facts["rows_flagged"]
    again = json.loads(invoke("caption", images, *model, "--loop-guard", "--json").stdout)
    assert (again["rows_retried"], again["rows_flagged"], again["flagged_by_fault"]) == (0, 0, {})
    assert "rows_retried" not in json.loads(invoke("caption", images, *model, "--json", "-o", "b.jsonl").stdout)


def test_prefixes_are_taken_off_and_written_down(scenes: Path, here: Path) -> None:
    plain, stripped = (
        read_rows(invoke("caption", scenes, *TINY, "-o", "-", *options).stdout_bytes)
        for options in ([], ["--strip", "two", "--strip", "a"])
    )
    assert [row["text"].removeprefix("a ").removeprefix("two ") for row in plain] == [row["text"] for row in stripped]
    assert [row["text"] for row in plain] != [row["text"] for row in stripped]
    assert [row["num_tokens"] for row in plain] == [row["num_tokens"] for row in stripped]
    invoke("caption", scenes, *TINY, "--trim-sentence", "--strip", "two ")
    settings = json.loads((here / "captions.jsonl.run.json").read_text())["settings"]
    assert (settings["loop_guard"], settings["trim_sentence"], settings["strip"]) == (False, True, ["two"])


def test_an_empty_prefix_is_a_wrong_option(scenes: Path, here: Path) -> None:
    result = invoke("caption", scenes, *TINY, "--strip", " ")
    assert result.exit_code == 2
    assert "--strip is empty" in result.stderr


def test_rules_for_texts_come_from_a_config_file_too(scenes: Path, here: Path) -> None:
    (here / "blip2cap.toml").write_text('loop-guard = true\nstrip = ["two", "a"]\n')
    assert invoke("caption", scenes, *TINY, "--config", "blip2cap.toml").exit_code == 0
    settings = json.loads((here / "captions.jsonl.run.json").read_text())["settings"]
    assert (settings["loop_guard"], settings["strip"]) == (True, ["two", "a"])


def test_a_run_without_failures_ends_with_0_and_says_where_the_rows_are(scenes: Path, here: Path) -> None:
    result = invoke("caption", scenes, *TINY)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "captions.jsonl: 5 ok, 0 failed" in result.stderr
    assert [row["file_name"] for row in read_rows(here / "captions.jsonl")] == names_below(scenes)


def test_a_failed_image_is_named_with_its_reason_and_the_run_ends_with_3(scenes: Path, here: Path) -> None:
    (here / "bad.png").write_bytes(b"")
    result = invoke("caption", scenes, "bad.png", *TINY)
    assert result.exit_code == 3
    assert "bad.png: truncated: the file is empty" in result.stderr
    assert "5 ok, 1 failed (1 truncated)" in result.stderr


def test_only_the_first_failures_are_named_unless_verbose(here: Path) -> None:
    for index in range(23):
        (here / f"{index}.png").write_bytes(b"no image")
    result = invoke("caption", here, *TINY)
    assert result.stderr.count("not_an_image: ") == 20
    assert "... and 3 more failures; --verbose names them all." in result.stderr
    assert invoke("caption", here, *TINY, "--overwrite", "--verbose").stderr.count("not_an_image: ") == 23


def test_quiet_says_nothing_but_errors(scenes: Path, here: Path) -> None:
    (here / "bad.png").write_bytes(b"")
    result = invoke("caption", scenes, "bad.png", *TINY, "--quiet")
    assert (result.exit_code, result.output) == (3, "")
    assert invoke("caption", here / "missing", *TINY, "--quiet").stderr.startswith("blip2cap: ")


def test_with_json_stdout_is_one_object(scenes: Path, here: Path) -> None:
    (here / "bad.png").write_bytes(b"")
    facts = json.loads(invoke("caption", scenes, "bad.png", *TINY, "--json").stdout)
    assert facts.pop("seconds") > 0
    assert facts.pop("images_per_s") > 0
    assert facts == {
        "out": "captions.jsonl",
        "images": 6,
        "rows_ok": 5,
        "rows_failed": 1,
        "failed_by_error": {"truncated": 1},
        "rows_there_before": 0,
        "rows_failed_before": 0,
        "rows_failed_not_asked": 0,
        "skipped": {},
        "stopped": False,
    }


def test_a_text_does_not_depend_on_the_batch_size_or_the_neighbours(scenes: Path, here: Path) -> None:
    for size in ("1", "2", "16"):
        invoke("caption", scenes, *TINY, "--out", f"{size}.jsonl", "--batch-size", size)
    assert (here / "1.jsonl").read_bytes() == (here / "2.jsonl").read_bytes() == (here / "16.jsonl").read_bytes()
    alone = invoke("caption", scenes / "001.png", *TINY, "-o", "-").stdout_bytes
    assert read_rows(alone)[0]["text"] == read_rows(here / "16.jsonl")[1]["text"]


def test_sampling_gives_the_same_texts_for_the_same_seed_in_any_batch(scenes: Path, here: Path) -> None:
    options = (*TINY, "--temperature", "2", "--num-captions", "2", "-o", "-")
    one = invoke("caption", scenes, *options, "--seed", "1", "--batch-size", "1").stdout_bytes
    assert one == invoke("caption", scenes, *options, "--seed", "1", "--batch-size", "4").stdout_bytes
    assert one != invoke("caption", scenes, *options, "--seed", "2").stdout_bytes


def test_prompt_fields_are_filled_for_each_image(scenes: Path, here: Path) -> None:
    result = invoke("caption", scenes, *TINY, "--prompt", "{folder} {stem}")
    assert result.exit_code == 0
    assert json.loads((here / "captions.jsonl.run.json").read_text())["settings"]["prompt"] == "{folder} {stem}"


def test_limit_takes_the_first_images_only(scenes: Path, here: Path) -> None:
    invoke("caption", scenes, *TINY, "--limit", "2")
    assert [row["file_name"] for row in read_rows(here / "captions.jsonl")] == names_below(scenes)[:2]


def test_a_dry_run_counts_and_writes_nothing(scenes: Path, here: Path) -> None:
    invoke("caption", scenes, *TINY, "--limit", "2")
    before = {path: path.read_bytes() for path in here.iterdir()}
    result = invoke("caption", scenes, *TINY, "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "captions.jsonl: 3 of 5 images to do, 2 already done; nothing was written" in result.stderr
    assert json.loads(invoke("caption", scenes, *TINY, "--dry-run", "--json").stdout) == {
        "out": "captions.jsonl",
        "images": 5,
        "images_to_do": 3,
        "rows_to_do": 3,
        "rows_there_before": 2,
        "rows_failed_before": 0,
        "rows_failed_not_asked": 0,
        "skipped": {},
    }
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_a_dry_run_says_what_it_skips_and_that_the_run_would_be_refused(scenes: Path, here: Path) -> None:
    draw_scenes(here / "images", 1)
    (here / "images" / "notes.txt").write_text("x")
    assert "skipped 1 other suffix" in invoke("caption", "images", *TINY, "--dry-run").stderr
    invoke("caption", "images", *TINY)
    result = invoke("caption", "images", *TINY, "--dry-run", "--prompt", "a photo of")
    assert result.exit_code == 5
    assert '--prompt was none, now "a photo of"' in result.stderr


def test_a_dry_run_refuses_what_the_run_would_refuse(scenes: Path, here: Path) -> None:
    assert invoke("caption", scenes, *TINY, "--prompt", "a photo of", "--limit", "2").exit_code == 0
    dry, real = (invoke("caption", scenes, *TINY, *options) for options in (["--dry-run"], []))
    assert dry.exit_code == real.exit_code == 5
    assert dry.stderr == real.stderr


def test_the_manifest_counts_the_rows_by_their_errors(scenes: Path, here: Path) -> None:
    (here / "broken.jpg").write_bytes(b"no picture")
    for arguments, counts in (
        (["--limit", "2"], {"ok": 2, "failed": {}}),
        (["--limit", "3"], {"ok": 3, "failed": {}}),
        (["broken.jpg", "--out", "more.jsonl"], {"ok": 5, "failed": {"not_an_image": 1}}),
    ):
        invoke("caption", scenes, *TINY, *arguments)
        output = "more" if "more.jsonl" in arguments else "captions"
        assert json.loads((here / f"{output}.jsonl.run.json").read_text())["counts"] == counts


def test_a_dry_run_imports_no_torch(scenes: Path, here: Path) -> None:
    code = (
        "import sys\nfrom blip2cap.cli import app\n"
        "try:\n    app()\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "caption", str(scenes), "--dry-run"]
    subprocess.run(command, cwd=here, check=True, capture_output=True)


def test_a_run_with_nothing_to_do_imports_no_torch(scenes: Path, here: Path) -> None:
    invoke("caption", scenes, *TINY)
    blocked = "import sys; sys.modules['torch'] = None; from blip2cap.cli import app; app()"
    command = [sys.executable, "-c", blocked, "caption", str(scenes), *TINY]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "captions.jsonl: 5 already done, nothing to do\n")


def test_paths_come_from_stdin_line_by_line(scenes: Path, here: Path) -> None:
    paths = [str(scenes / name) for name in names_below(scenes)[:3]]
    result = invoke("caption", "-", *TINY, stdin="\n".join(paths).encode())
    assert result.exit_code == 0
    assert [row["file_name"] for row in read_rows(here / "captions.jsonl")] == paths


def test_paths_that_end_with_nul_may_hold_newlines(here: Path) -> None:
    draw_scenes(here, 1)
    (here / "000.png").rename(here / "a\nb.png")
    invoke("caption", "-0", "-", *TINY, stdin=b"a\nb.png\0missing.png\0")
    rows = read_rows(here / "captions.jsonl")
    assert [(row["file_name"], row["error"]) for row in rows] == [("a\nb.png", ""), ("missing.png", "vanished")]


def test_paths_come_from_files_and_a_path_named_twice_makes_one_row(scenes: Path, here: Path) -> None:
    first, second = str(scenes / "000.png"), str(scenes / "001.png")
    (here / "list.txt").write_text(f"{second}\r\n\n{first}\n")
    result = invoke("caption", first, *TINY, "--files-from", "list.txt")
    assert "skipped 1 duplicate" in result.stderr
    assert [row["file_name"] for row in read_rows(here / "captions.jsonl")] == [first, second]


def test_a_list_in_a_pipe_is_read_once(here: Path) -> None:
    os.mkfifo(here / "list")
    assert not Source(SourceOptions(files_from=("list",))).repeatable


def test_stdout_holds_rows_only_and_stderr_all_else(scenes: Path, here: Path) -> None:
    (here / "bad.png").write_bytes(b"")
    stdout, stderr = finish(start("caption", scenes, "bad.png", *TINY, "-o", "-", "--num-beams", "2", cwd=here))
    assert [row["status"] for row in read_rows(stdout)] == ["ok"] * 5 + ["failed"]
    assert stderr.decode().splitlines() == [
        "loading tiny ...",
        "tiny: float32 on cpu, batch size to be measured",
        "bad.png: truncated: the file is empty",
        stderr.decode().splitlines()[-1],
    ]
    assert b"standard output: 5 ok, 1 failed" in stderr
    assert [path.name for path in here.iterdir()] == ["bad.png"]


def test_a_reader_that_goes_ends_the_run_quietly(scenes: Path, here: Path) -> None:
    process = start("caption", scenes, *TINY, "-o", "-", "--quiet", "--batch-size", "1", cwd=here)
    assert len(read_rows(take_one_line(process))) == 1
    assert (finish(process), process.returncode) == ((b"", b""), 141)


def test_a_stdout_that_takes_a_part_of_a_write_loses_nothing() -> None:
    class Unbuffered(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data[:7]))

    stream, row = Unbuffered(), text_row(file_name="a.jpg", file_name_b64="", text="a beach")
    StreamSink(stream).write([row, row])
    assert stream.getvalue() == 2 * row.as_json()
