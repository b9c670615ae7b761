"""Vision-language models on the command line: captions that are resumed, answers, workers, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip2cap.bench import benchmark
from blip2cap.bench.page import advice
from blip2cap.captioner import Captioner
from blip2cap.generate_options import GenerateOptions
from tests.commands import invoke, names_below, read_rows


@pytest.fixture
def model(vlm_checkpoints: Callable[[str], Path]) -> tuple[str, ...]:
    """Options that name a small LLaVA."""
    return ("--model", str(vlm_checkpoints("llava")), "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "6")


def test_captions_are_resumed_with_the_same_prompt_system_and_pixels(
    scenes: Path, here: Path, model: tuple[str, ...]
) -> None:
    command = ("caption", str(scenes), *model, "--max-pixels", "900", "--system", "be brief", "--batch-size", "2")
    assert invoke(*command, "--limit", "3").exit_code == 0
    first = read_rows(here / "captions.jsonl")
    result = invoke(*command)
    rows = read_rows(here / "captions.jsonl")
    assert result.exit_code == 0
    assert rows[:3] == first
    assert [row["file_name"] for row in rows] == names_below(scenes)
    assert {(row["status"], row["width"], row["height"]) for row in rows} == {("ok", 64, 48)}
    assert invoke(*command, "-o", "at_once.jsonl").exit_code == 0
    assert read_rows(here / "at_once.jsonl") == rows
    settings = json.loads(invoke("status", "captions.jsonl", "--json").stdout)["settings"]
    assert (settings["prompt"], settings["system"], settings["max_pixels"]) == ("Describe this image.", "be brief", 900)
    for other in (("--max-pixels", "800"), ("--system", "be long"), ("--prompt", "what?")):
        result = invoke(*command, *other)
        assert result.exit_code == 5
        assert f"was made with other settings: {other[0]} was" in result.stderr


def test_answers_are_those_to_the_bare_questions(scenes: Path, here: Path, model: tuple[str, ...]) -> None:
    result = invoke("vqa", scenes, *model, "-q", "what is it?", "-q", "how many are there?")
    rows = read_rows(here / "answers.jsonl")
    assert result.exit_code == 0
    assert len(rows) == 10
    assert len({row["answer"] for row in rows}) > 2
    settings = json.loads(invoke("status", "answers.jsonl", "--json").stdout)["settings"]
    assert (settings["template"], settings["max_pixels"]) == ("{question}", 1024 * 1024)


def test_a_name_that_holds_a_special_token_costs_its_own_row(scenes: Path, here: Path, model: tuple[str, ...]) -> None:
    for name in ("a.png", "<image>.png"):
        (here / name).write_bytes((scenes / "000.png").read_bytes())
    result = invoke("caption", ".", *model, "--prompt", "{stem}")
    assert result.exit_code == 3
    assert [(row["file_name"], row["error"]) for row in read_rows(here / "captions.jsonl")] == [
        ("<image>.png", "unsupported"),
        ("a.png", ""),
    ]


@pytest.mark.parametrize("command", [("match", "--text", "a house"), ("embed",)])
def test_scores_and_vectors_are_refused_with_models_that_make_them(
    scenes: Path, here: Path, model: tuple[str, ...], command: tuple[str, ...]
) -> None:
    result = invoke(command[0], scenes, *model[:2], *command[1:])
    assert result.exit_code == 2
    assert f"family llava, which cannot {command[0]}" in result.stderr
    assert "tiny-itm" in result.stderr


def test_the_benchmark_counts_the_work_by_a_trial(
    here: Path, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "matrix_rate", lambda device, dtype, kind: 1e11)
    monkeypatch.setattr(benchmark, "memory_rate", lambda device: 1e10)
    small = ("--image-size", "64x48", "--num-images", "3", "--repeat", "1")
    result = invoke("bench", *model, *small, "-q", "what is it?", "-q", "how many?", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["model"]["family"] == "llava"
    assert facts["work"]["gflop"] > 0
    assert {"prepare", "generate"} <= {stage["stage"] for stage in facts["figures"]["stages"]}
    assert 0 < facts["figures"]["share_of_limit"] < 1
    facts["figures"]["bound_by"] = "model"
    assert "int8-dynamic" not in advice(facts)
    assert "at most 10 min" in result.stderr
    result = invoke("bench", "-m", "openai:x")
    assert result.exit_code == 2
    assert "Other commands need a model on this machine" in result.stderr


def test_from_python_images_in_memory_have_the_texts_of_their_files(
    scenes: Path, here: Path, vlm_checkpoints: Callable[[str], Path]
) -> None:
    captioner = Captioner.load(str(vlm_checkpoints("llava")), device="cpu", dtype="float32", max_pixels=900)
    paths = sorted(scenes.glob("*.png"))
    options = GenerateOptions(max_new_tokens=6)
    expected = captioner.caption(paths, options=options)
    pictures = [Image.open(path) for path in paths]
    assert captioner.caption([*pictures, np.asarray(pictures[0])], options=options) == [*expected, expected[0]]
    captioner.caption_folder(scenes, out="rows.jsonl", options=options)
    assert [row["text"] for row in read_rows(here / "rows.jsonl")][: len(paths)] == expected
    assert json.loads(invoke("status", "rows.jsonl", "--json").stdout)["settings"]["max_pixels"] == 900


def test_the_loop_guard_regenerates_texts_of_these_models_too(scenes: Path, here: Path, model: tuple[str, ...]) -> None:
    result = invoke("caption", scenes, *model, "--loop-guard", "--system", "be brief")
    assert result.exit_code == 0
    assert [row["status"] for row in read_rows(here / "captions.jsonl")] == ["ok"] * 5


@pytest.mark.long
def test_workers_make_the_same_rows(scenes: Path, here: Path, model: tuple[str, ...]) -> None:
    assert invoke("caption", scenes, *model, "-o", "one.jsonl").exit_code == 0
    assert invoke("caption", scenes, *model, "-o", "two.jsonl", "--workers", "2").exit_code == 0
    assert read_rows(here / "two.jsonl") == read_rows(here / "one.jsonl")
