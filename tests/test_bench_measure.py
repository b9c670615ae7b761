"""Jobs that a suite measures, and the pictures for them. No test asserts a time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure, pictures
from benchmarks.lengths import LONGEST, SHORTEST, spread
from benchmarks.measure import Facts, Job
from benchmarks.pictures import Pictures
from benchmarks.profiles import measure_profiles
from blip2cap.bench import benchmark
from blip2cap.bench.stages import Loaded
from blip2cap.options import ModelOptions
from blip2cap.stopwatch import Stopwatch
from tests.benches import loaded_tiny, tiny_model
from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    return Pictures(tmp_path_factory.mktemp("drawn"), num_processes=1).scenes(6)


def measured(images: str, **settings: Any) -> Facts:
    return measure.measure(loaded_tiny(), Job(images=images, **settings))


@pytest.mark.long
def test_a_job_is_a_real_run_from_files_to_rows(drawn: str) -> None:
    facts = measured(drawn, warmup=1, batch_size=2, repeats=2, new_tokens=4)
    assert (facts["images"], facts["rows"]) == (6, 6)
    assert facts["counts"]["vision"] == 3
    assert facts["images_at_once"] == facts["texts_at_once"] == 2
    assert 0 < facts["new_tokens"] <= 4
    assert {"vision", "prefill", "step"} <= facts["stages_s"].keys()
    assert (facts["dtype"], facts["device"]) == ("float32", "cpu")
    assert len(facts["all_images_per_s"]) == 2
    assert len(facts["texts"]) == 3
    assert json.loads(json.dumps(facts)) == facts


def test_every_question_of_a_job_makes_a_row(drawn: str) -> None:
    facts = measured(drawn, num_images=2, questions=["is it day or night?", "where is this?"])
    assert (facts["images"], facts["rows"]) == (2, 4)


def test_batch_sizes_of_the_vision_encoder_and_the_decoder_can_differ(drawn: str) -> None:
    facts = measured(drawn, image_batch=3, capacity=6)
    assert facts["counts"]["vision"] == 2
    assert (facts["images_at_once"], facts["texts_at_once"]) == (3, 6)


def test_switches_of_a_job_last_as_long_as_the_job(drawn: str) -> None:
    model = tiny_model()
    before, watch = (model.watch, model.reads_late), Stopwatch()
    facts = measured(drawn, num_images=2, switches={"watch": watch, "reads_late": True}, decode="exact", threads=1)
    assert facts["rows"] == 2
    assert facts["counts"] == watch.counts
    assert (model.watch, model.reads_late) == before
    with pytest.raises(AttributeError, match="colour"):
        measured(drawn, switches={"colour": "red"})


def test_jobs_that_cannot_be_done_say_so(drawn: str) -> None:
    with pytest.raises(ValueError, match="must be one of run, stages, lengths"):
        measured(drawn, what="x")
    with pytest.raises(ValueError, match="has only 6"):
        measured(drawn, num_images=7)


@pytest.mark.long
def test_stages_are_those_of_the_bench_command(drawn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "matrix_rate", lambda *args: 1e12)
    monkeypatch.setattr(benchmark, "memory_rate", lambda *args: 1e10)
    facts = measured(drawn, what="stages", batch_size=2)
    assert facts["images"]["num_images"] == 6
    assert facts["figures"]["share_of_limit"] > 0
    assert facts["model"]["name"] == "tiny"
    assert {"vision", "step"} <= {stage["stage"] for stage in facts["figures"]["stages"]}


def test_random_weights_end_no_text(drawn: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "opt")
    options = ModelOptions(name=str(folder), random_weights=True, device="cpu", dtype="float32")
    facts = measure.measure(Loaded(options), Job(images=drawn, new_tokens=9))
    assert facts["new_tokens"] == 9


def test_jobs_of_the_command_line_print_one_object_each(drawn: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"name": "tiny", "device": "cpu", "dtype": "float32"}
    job = {"images": drawn, "num_images": 1, "new_tokens": 2}
    assert measure.main([json.dumps(model), json.dumps(job), json.dumps(job)]) == 0
    assert [json.loads(line)["rows"] for line in capsys.readouterr().out.splitlines()] == [1, 1]


def test_profiles_name_what_takes_longest() -> None:
    facts = measure_profiles(tiny_model(), num_images=2, num_rows=4)
    for part in ("vision_batch", "step"):
        times = [kernel["ms"] for kernel in facts[part]["top"]]
        assert times == sorted(times, reverse=True)
        assert facts[part]["num_kernels"] > len(times) > 1
        assert min(facts[part]["ms"], facts[part]["device_ms"]) > 0
    assert "aten::addmm" in {kernel["name"] for kernel in facts["vision_batch"]["top"]}


def test_lengths_are_spread_evenly_and_mixed() -> None:
    lengths = spread()
    assert (min(lengths), max(lengths)) == (SHORTEST, LONGEST)
    assert sum(lengths) == len(lengths) * (SHORTEST + LONGEST) / 2
    assert max(Counter(lengths).values()) <= 3
    assert lengths != sorted(lengths)


def test_texts_of_many_lengths_take_steps_for_their_mean(drawn: str) -> None:
    facts = measured(drawn, what="lengths")
    steps = {name: facts[name]["num_steps"] for name in ("mean", "spread", "longest")}
    assert facts["mean"]["num_tokens"] * 3 == facts["spread"]["num_tokens"] == 48 * 12
    assert (steps["mean"], steps["longest"]) == (11, 19)
    # 16 slots, 48 texts: what is above the mean is the end, where the last texts run alone.
    assert 3 * steps["mean"] <= steps["spread"] <= 3 * steps["mean"] + LONGEST - SHORTEST


def test_pictures_all_differ_and_the_first_are_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LARGE_SIZE", (64, 48))
    drawn = Pictures(tmp_path, num_processes=1)
    few = {path.name: path.read_bytes() for path in Path(drawn.scenes(2)).iterdir()}
    many = {path.name: path.read_bytes() for path in Path(drawn.scenes(5)).iterdir()}
    assert few == {name: many[name] for name in sorted(many)[:2]}
    assert len(set(many.values())) == 5
    large = [path.read_bytes() for path in Path(drawn.large(17)).iterdir()]
    assert len(set(large)) == len(large) == 32


@pytest.mark.slow
def test_many_pictures_are_drawn_by_several_processes(tmp_path: Path) -> None:
    alone = Pictures(tmp_path / "alone", num_processes=1).scenes(5)
    together = Pictures(tmp_path / "together", num_processes=2, num_few=2).scenes(5)
    contents = [{path.name: path.read_bytes() for path in Path(folder).iterdir()} for folder in (alone, together)]
    assert contents[0] == contents[1]
