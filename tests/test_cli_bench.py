"""`blip2cap bench` with the model inside the package and a few images; no time is asserted, only what is made of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner, Result

from blip2cap import __version__
from blip2cap.bench import benchmark, stages
from blip2cap.bench.programs import ProgramError
from blip2cap.cli import app
from blip2cap.models.blip2.model import Blip2
from tests.benches import load_once
from tests.commands import TINY, invoke

SMALL = (*TINY, "--device", "cpu", "--dtype", "float32", "--image-size", "64x48", "--num-images", "3", "--repeat", "1")
BATCH = ("--batch-size", "2", "--max-new-tokens", "4")
Bench = Callable[..., Result]


@pytest.fixture
def bench(here: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Run the command on a machine that need not be measured, with models that are loaded once."""
    monkeypatch.setattr(benchmark, "matrix_rate", lambda device, dtype, kind: 1e11)
    monkeypatch.setattr(benchmark, "memory_rate", lambda device: 1e10)
    monkeypatch.setattr(stages, "load", load_once)
    return lambda *args, **settings: invoke("bench", *args, **settings)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_drawn_scenes_are_measured_by_stage(bench: Bench, here: Path) -> None:
    result = bench(*SMALL, *BATCH)
    assert result.exit_code == 0, result.stderr
    for part in (
        "read",
        "decode",
        "vision",
        "write",
        "files to rows",
        "images/s",
        "limit",
        "limited by",
        "what helps",
        "ms/image",
    ):
        assert part in result.stdout
    assert "tiny: float32 on cpu, greedy, 4 new tokens" in result.stdout
    assert "3 drawn scenes of 64x48; 1 pass" in result.stdout
    assert "images take about" in result.stdout.splitlines()[0], "what people want to know comes first"
    assert "this takes about" in result.stderr.splitlines()[1]
    assert "at most 10 min (--max-minutes)" in result.stderr
    assert "loading tiny ..." in result.stderr
    assert names_in(here) == set()


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_fits_the_terminal(bench: Bench, width: int) -> None:
    result = bench(*SMALL, *BATCH, "--sweep", env={"COLUMNS": str(width)})
    assert max(map(len, result.stdout.splitlines())) <= width
    assert "batch size  images/s" in result.stdout
    assert "\x1b" not in result.stdout


def test_results_are_the_same_object_in_a_file_and_on_stdout(bench: Bench, here: Path) -> None:
    result = bench(*SMALL, *BATCH, "--json", "--out", "results.json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert json.loads((here / "results.json").read_text()) == facts
    assert names_in(here) == {"results.json"}
    assert facts["machine"]["versions"]["blip2cap"] == __version__
    assert facts["machine"]["cpu"]
    assert facts["command"].split()[0] == "blip2cap"
    assert facts["model"]["name"] == "tiny"
    assert facts["settings"]["batch_size"] == 2
    assert facts["images"] == {"num_images": 3, "drawn": True, "size": [64, 48]}
    assert facts["rates"]["matrix_tflop_per_s"] == 0.1
    assert facts["work"]["new_tokens"] == 4
    assert facts["work"]["gflop"] > 0
    figures = facts["figures"]
    rate = figures["images_per_s"]
    assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    assert figures["share_of_limit"] == pytest.approx(rate["median"] / figures["limit_images_per_s"], rel=1e-3)
    assert figures["bound_by"] in figures["bounds_ms"]
    assert figures["num_bad_images"] == 0
    assert [stage["stage"] for stage in figures["stages"]][:2] == ["read", "decode"]


def test_quiet_says_nothing_at_all(bench: Bench) -> None:
    assert bench(*SMALL, *BATCH, "--quiet").output == ""


def test_a_model_without_memory_for_any_image_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(model: Blip2, images: object) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(Blip2, "encode", encode)
    result = bench(*SMALL, *BATCH)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "none of 3 images went through the model" in result.stderr


@pytest.mark.long
def test_inputs_are_taken_and_bad_ones_counted(bench: Bench, scenes: Path, here: Path) -> None:
    (here / "bad.jpg").write_bytes(b"no image")
    result = bench(scenes, "bad.jpg", *TINY, *BATCH, "--limit", "6", "--repeat", "1", "--json")
    assert result.exit_code == 3
    facts = json.loads(result.stdout)
    assert facts["images"] == {"num_images": 6, "drawn": False, "size": None}
    assert facts["figures"]["num_bad_images"] == 1
    page = bench(scenes, "bad.jpg", *TINY, *BATCH, "--limit", "6", "--repeat", "1")
    assert "1, left out of the figures" in page.stdout


def test_questions_are_asked_about_every_image(bench: Bench) -> None:
    result = bench(*SMALL, *BATCH, "-q", "what is it?", "-q", "is there a house?", "--json")
    facts = json.loads(result.stdout)
    assert facts["settings"]["questions"] == ["what is it?", "is there a house?"]
    assert facts["work"]["gflop_by_phase"]["prefill"] > facts["work"]["gflop_by_phase"]["projection"]
    assert "2 questions about each" in bench(*SMALL, *BATCH, "-q", "what is it?", "-q", "is there a house?").stdout


def test_random_weights_write_texts_of_full_length(bench: Bench) -> None:
    facts = json.loads(bench(*SMALL, "--random-weights", "--max-new-tokens", "6", "--json").stdout)
    assert facts["work"]["new_tokens"] == 6
    assert facts["model"]["random_weights"] is True


@pytest.mark.long
def test_a_quantised_model_reads_less(bench: Bench) -> None:
    whole, bytes_only = (
        json.loads(bench(*SMALL, *BATCH, *more, "--json").stdout) for more in ((), ("--quantize", "int8-dynamic"))
    )
    assert bytes_only["model"]["quantize"] == "int8-dynamic"
    assert bytes_only["work"]["weights_read_per_step_gb"] < 0.5 * whole["work"]["weights_read_per_step_gb"]
    assert bytes_only["work"]["gflop"] == pytest.approx(whole["work"]["gflop"], rel=0.2)


@pytest.mark.long
def test_an_estimate_is_made_from_the_rate_of_this_run(bench: Bench) -> None:
    facts = json.loads(bench(*SMALL, *BATCH, "--estimate", "2_000_000", "--json").stdout)
    estimate = facts["estimate"]
    assert estimate["num_images"] == 2_000_000
    assert estimate["images_per_s"] == facts["figures"]["images_per_s"]["median"]
    assert estimate["seconds"] == pytest.approx(2_000_000 / estimate["images_per_s"], rel=1e-3)
    assert estimate["fastest_s"] <= estimate["seconds"] <= estimate["slowest_s"]
    assert "2,000,000 images like drawn scenes of 64x48" in bench(*SMALL, *BATCH, "--estimate", "2000000").stdout
    assert "estimate" not in json.loads(bench(*SMALL, *BATCH, "--json").stdout)


def test_a_sweep_is_part_of_the_results(bench: Bench) -> None:
    result = bench(*SMALL, *BATCH, "--sweep", "--json")
    points = json.loads(result.stdout)["sweep"]
    assert [point["batch_size"] for point in points] == [1, 2]
    assert all(0 < point["images_per_s"]["min"] <= point["images_per_s"]["max"] for point in points)


@pytest.mark.long
def test_the_plain_script_is_compared_with(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def run_peer(module: str, options: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        assert module == "blip2cap.bench.plain_transformers"
        assert 0 < timeout_s < 600
        asked.append({**options, "files": len(list(options["images"].iterdir()))})
        if options["batch_size"] == 16:
            raise ProgramError("no memory")
        size = options["batch_size"]
        return {"batch_size": size, "images_per_s": 0.1 * size, "texts": ["x"], "images": 3, "load_s": 0.1}

    monkeypatch.setattr(benchmark, "run_peer", run_peer)
    result = bench(*SMALL, *BATCH, "--baseline", "--json")
    assert [each["batch_size"] for each in asked] == [1, 16], "64 would be the same batches of three images"
    assert all(each["files"] == each["limit"] == 3 for each in asked)
    assert all((each["max_new_tokens"], each["dtype"]) == (4, "float32") for each in asked)
    assert "plain transformers, batch size 16: no memory" in result.stderr
    baseline = json.loads(result.stdout)["baseline"]
    assert baseline["best_batch_size"] == 1
    assert baseline["ratio"] > 1
    assert [run["error"] for run in baseline["runs"]] == ["", "no memory"]
    assert {"images_per_s", "load_s", "peak_rss_mb", "num_images", "versions"} < baseline["runs"][1].keys()
    page = bench(*SMALL, *BATCH, "--baseline").stdout
    assert "times the plain transformers script" in " ".join(page.split())


def test_a_plain_script_that_never_ran_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_peer(module: str, options: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        raise ProgramError("no")

    monkeypatch.setattr(benchmark, "run_peer", run_peer)
    result = bench(*SMALL, *BATCH, "--baseline")
    assert result.exit_code == 0
    assert "the plain script gave no result at any batch size" in result.stdout


def test_a_benchmark_keeps_its_time_and_says_what_it_leaves_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "run_peer", None)  # would fail
    monkeypatch.setattr(stages, "PASS_S", 0.05)
    result = bench(
        *TINY, "--image-size", "64x48", "--num-images", "40", *BATCH, "--baseline", "--sweep", "--max-minutes", "0.0001"
    )
    assert result.exit_code == 0, result.stderr
    why = "to stay within 0.0001 minutes (--max-minutes)"
    assert f"it is cut short {why}" in result.stderr.splitlines()[1]
    assert f"1 of 40 images, {why}" in result.stderr
    assert f"2 of 6 passes, {why}" in result.stderr
    assert f"plain transformers, batch size 1: skipped {why}" in result.stderr
    assert f"no batch size, {why}" in result.stderr
    assert "once more" not in result.stderr, "there is nothing to compare with"
    assert "1 drawn scene of 64x48; 1 pass" in result.stdout
    assert "baseline  none:" in result.stdout


def test_left_out_the_number_of_images_is_chosen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "PASS_S", 0.05)
    monkeypatch.setattr(benchmark, "FIRST_DRAWN", 6)
    result = bench(*TINY, *BATCH, "--image-size", "64x48", "--repeat", "1", "--json")
    assert json.loads(result.stdout)["images"]["num_images"] >= 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--limit", "3"), 2, "--limit has no effect without INPUT"),
        (("--num-images", "0"), 2, "--num-images 0: must be 1 or more"),
        (("--max-minutes", "0"), 2, "--max-minutes 0: must be above 0"),
        (("--estimate", "0"), 2, "--estimate 0: must be 1 or more"),
        (("--repeat", "0"), 2, "--repeat 0: must be 1 or more"),
        (("--image-size", "big"), 2, "--image-size big: expected WIDTHxHEIGHT"),
        (("--batch-size", "0"), 2, "--batch-size 0: must be 1 or more"),
        (("-q", "x", "-q", "x"), 2, "is asked twice"),
        (("missing.jpg",), 2, "missing.jpg: no such file or folder"),
        ((".",), 2, "no image found in ."),
        (("empty.jpg", "--limit", "1"), 2, "none of 1 images can be decoded"),
        (("empty.jpg", "--num-images", "3"), 2, "--num-images has no effect with INPUT"),
        (("empty.jpg", "--image-size", "64x48"), 2, "--image-size has no effect with INPUT"),
        (("--model", "./nowhere"), 4, "no such folder"),
        (("--out", "missing/x.json"), 6, "--out missing/x.json: no such folder as missing"),
        (("--out", "folder.json"), 6, "--out folder.json: is a folder"),
        (("--out", "captions.jsonl"), 2, "--out captions.jsonl: must end in .json."),
    ],
)
def test_what_cannot_be_done_is_said_at_once(
    bench: Bench, here: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (here / "folder.json").mkdir()
    if "empty.jpg" in arguments:
        (here / "empty.jpg").touch()
    result = bench(*TINY, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


def test_a_result_that_cannot_be_written_leaves_nothing(bench: Bench, here: Path) -> None:
    (here / "results.json.tmp").mkdir()
    result = bench(*SMALL, *BATCH, "--out", "results.json")
    assert result.exit_code == 6
    assert "--out results.json: cannot be written: Is a directory" in result.stderr
    assert names_in(here) == {"results.json.tmp"}


@pytest.mark.usefixtures("bench")
def test_a_terminal_without_unicode_gets_ascii() -> None:
    result = CliRunner(charset="ascii").invoke(app, ["bench", *SMALL, *BATCH, "--sweep"])
    assert result.exit_code == 0, result.output
    assert result.stdout.isascii()
    assert "| vision" in result.stdout
    assert "##" in result.stdout


def test_help_explains_every_option_and_imports_no_torch(tmp_path: Path) -> None:
    command: Any = typer.main.get_command(app).commands["bench"]  # type: ignore[attr-defined]
    code = "import sys; from blip2cap.cli import app; app(['bench', '--help'], standalone_mode=False); "
    done = subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules"], capture_output=True, text=True, check=True
    )
    for parameter in command.params:
        assert parameter.help
        assert all(flag in done.stdout for flag in parameter.opts if flag.startswith("-"))
        several = parameter.name in ("inputs", "questions", "help")
        long = max(parameter.opts, key=len).lstrip("-").replace("-", "_").upper()
        assert parameter.envvar == (None if several else f"BLIP2CAP_{long}")


def test_the_options_that_caption_has_too_are_the_same() -> None:
    commands: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    captions, ours = ({each.name: each for each in commands[name].params} for name in ("caption", "bench"))
    own = {"max_new_tokens", "out", "as_json", "inputs"}
    for name in (captions.keys() & ours.keys()) - own:
        assert (captions[name].opts, captions[name].help, captions[name].default) == (
            ours[name].opts,
            ours[name].help,
            ours[name].default,
        )
