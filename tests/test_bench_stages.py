"""Passes of the model inside the package over a few images, and the figures that follow from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blip2cap.bench import report, stages
from blip2cap.bench.budget import Budget
from blip2cap.bench.images import copy_small, draw_images, link
from blip2cap.bench.machine import Decoding, decoding_rate
from blip2cap.bench.options import BenchOptions, parse_size
from blip2cap.bench.programs import PLAIN, run_peer
from blip2cap.bench.report import Limit, baseline_facts, figures
from blip2cap.bench.stages import Loaded, Measured, Pass, choose_count, measure, median, run_once, sweep
from blip2cap.bench.work import count
from blip2cap.decode.image import decode
from blip2cap.decode.inputs import SquareInput
from blip2cap.decode.read import read
from blip2cap.errors import UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.options import BatchOptions, DecodeOptions, SourceOptions
from blip2cap.records import ImageRef
from blip2cap.source.inputs import Source
from tests.benches import TINY, loaded_tiny

OPTIONS = BenchOptions(
    model=TINY,
    generate=GenerateOptions(max_new_tokens=4),
    decode=DecodeOptions(num_threads=1),
    batch=BatchOptions(batch_size=2),
    repeats=2,
)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return loaded_tiny()


@pytest.fixture
def refs(scenes: Path) -> list[ImageRef]:
    return list(Source(SourceOptions(inputs=(str(scenes),))))


def pass_of(**values: Any) -> Pass:
    return Pass(**{"num_images": 10, "seconds": 2.0, "model_s": 1.0, "write_s": 0.1, "num_rows_ok": 10, **values})


def test_a_pass_is_a_real_run(loaded: Loaded, refs: list[ImageRef], tmp_path: Path) -> None:
    bad = ImageRef(path=str(tmp_path / "gone.png"), name="gone.png")
    done = run_once(loaded, OPTIONS, [*refs, bad], tmp_path)
    assert (done.num_images, done.num_rows_ok, set(done.bad)) == (5, 5, {"gone.png"})
    assert done.images_per_s == 5 / done.seconds
    assert len(done.texts) == 6
    assert done.texts[-1] == ""
    assert all(done.texts[:-1])
    assert 5 <= done.num_tokens <= 20
    assert {"copy", "vision"} <= done.stages.keys() == done.counts.keys()
    assert 0 < sum(done.stages.values()) <= done.model_s <= done.seconds
    assert 1 <= done.images_at_once <= 2
    again = run_once(loaded, OPTIONS, refs[:1], tmp_path)
    assert again.counts["vision"] == 1
    assert again.texts == done.texts[:1]


def test_every_question_is_a_row(loaded: Loaded, refs: list[ImageRef], tmp_path: Path) -> None:
    options = replace(OPTIONS, questions=("what is it?", "where is it?"))
    done = run_once(loaded, options, refs[:2], tmp_path)
    assert (done.num_images, done.num_rows_ok, len(done.texts)) == (2, 4, 4)


def test_copies_have_the_pixels_that_the_model_sees(refs: list[ImageRef], tmp_path: Path) -> None:
    options = DecodeOptions()
    copies = copy_small(refs, tmp_path, SquareInput(32), options)
    for ref, copy in zip(refs, copies, strict=True):
        original, copied = (decode(read(each, options), 32, options).pixels_HWC for each in (ref, copy))
        assert np.array_equal(original, copied)


def test_drawn_images_all_differ(tmp_path: Path) -> None:
    drawn = draw_images(tmp_path, range(12), (64, 48))
    assert len({Path(ref.path).read_bytes() for ref in drawn}) == 12
    assert len(draw_images(tmp_path, range(12), (64, 48), budget_s=0)) == 1


def test_linked_files_keep_their_order_and_are_all_called_jpg(refs: list[ImageRef], tmp_path: Path) -> None:
    folder = link([*reversed(refs), refs[0]], tmp_path / "linked")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{number:06}.jpg" for number in range(6)]
    assert (folder / names[0]).read_bytes() == Path(refs[-1].path).read_bytes()


@pytest.mark.parametrize("text", ["", "640", "640x", "0x1", "640x480x3", "-1x2", "6.5x2", "123456x1"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected WIDTHxHEIGHT"):
        parse_size(text)
    assert parse_size("640x480") == (640, 480)


def test_the_number_of_images_is_whole_batches(loaded: Loaded, refs: list[ImageRef], tmp_path: Path) -> None:
    copies = copy_small(refs, tmp_path, loaded.model.image_input, OPTIONS.decode)
    number, seconds = choose_count(loaded, OPTIONS, copies, tmp_path)
    assert seconds > 0
    assert number >= 4
    assert number % 2 == 0


def test_passes_are_measured_in_turns(loaded: Loaded, refs: list[ImageRef], tmp_path: Path) -> None:
    copies = copy_small(refs[:3], tmp_path, loaded.model.image_input, OPTIONS.decode)
    decoding, _ = decoding_rate(refs, loaded.model.image_input, OPTIONS.decode)
    measured = measure(loaded, OPTIONS, refs, copies, decoding, tmp_path)
    assert [done.num_images for done in measured.whole] == [5, 5]
    assert [done.num_images for done in measured.alone] == [3, 3]
    assert measured.staged in measured.alone
    assert measured.whole[0].texts[:3] == measured.alone[0].texts
    work = count(loaded.checkpoint.config, prompts=[1], new_tokens=4)
    limit = Limit(work=work, flops_per_s=1e11, bytes_per_s=1e10, images=2, texts=2, new_tokens=4)
    found = report.stages(measured, limit, num_threads=1)
    names = [stage["stage"] for stage in found]
    assert names[:2] == ["read", "decode"]
    assert names[-2:] == ["rest of the model", "write"]
    assert {"copy", "vision"} <= set(names)
    assert all(stage["ms"] >= 0 for stage in found)
    by_name = {stage["stage"]: stage for stage in found}
    assert by_name["vision"]["limit_ms"] > 0
    assert by_name["copy"]["limit_ms"] is None


def test_the_middle_pass_counts() -> None:
    passes = [pass_of(seconds=seconds) for seconds in (1.0, 4.0, 2.0, 3.0)]
    assert median(passes).seconds == 3.0
    assert median(passes[:3]).seconds == 2.0
    assert pass_of(seconds=0.0).images_per_s == 0


WORK = count({}, prompts=[1], new_tokens=12)
LIMIT = Limit(work=WORK, flops_per_s=WORK.flops * 20, bytes_per_s=1e30, images=16, texts=16, new_tokens=12)
"""20 images/s."""


def measured_of(*, decode_s: float = 0.001, model_s: float = 1.0, write_s: float = 0.1) -> Measured:
    alone = pass_of(model_s=model_s, stages={"vision": 0.5, "step": 0.25}, counts={"vision": 1, "step": 11})
    return Measured(
        decoding=Decoding(num_images=10, read_s=0.001, decode_s=decode_s),
        whole=(pass_of(write_s=write_s),),
        alone=(alone,),
        staged=alone,
    )


@pytest.mark.parametrize(
    ("values", "bound_by"),
    [({}, "model"), ({"decode_s": 1.0}, "decode"), ({"write_s": 3.0}, "write")],
)
def test_the_slowest_of_three_bounds_the_run(values: dict[str, float], bound_by: str) -> None:
    found = figures(measured_of(**values), LIMIT, num_threads=2)
    assert found["bound_by"] == bound_by
    assert (found["overhead"] is None) == (bound_by != "model")
    assert found["overhead_unknown"] == (
        "" if bound_by == "model" else f"the run waits for {bound_by}, not for the model"
    )


def test_threads_decode_together() -> None:
    assert figures(measured_of(decode_s=0.199), LIMIT, 1)["bounds_ms"]["decode"] == 200
    assert figures(measured_of(decode_s=0.199), LIMIT, 2)["bounds_ms"]["decode"] == 100


def test_rate_share_and_overhead_follow_from_the_passes() -> None:
    found = figures(measured_of(), LIMIT, num_threads=2)
    assert found["images_per_s"] == {"min": 5.0, "median": 5.0, "max": 5.0}
    assert found["limit_images_per_s"] == 20
    assert found["share_of_limit"] == 0.25
    assert found["overhead"] == 0.5  # 10 images took 2 s, of which the model alone needs 1
    slow = figures(measured_of(model_s=2.5), LIMIT, 2)
    assert (slow["overhead"], slow["overhead_unknown"].split(":")[0]) == (
        None,
        "the model took longer alone than in whole runs",
    )
    rest = {stage["stage"]: stage for stage in found["stages"]}
    assert rest["rest of the model"]["ms"] == 25
    assert rest["step"]["note"] == "11 steps of 22.7 ms"


def test_a_qformer_that_reads_the_prompt_is_a_stage_of_its_own() -> None:
    measured = measured_of()
    with_qformer = replace(measured, staged=pass_of(stages={"vision": 0.5, "qformer": 0.1}, counts={}))
    least = [
        {stage["stage"]: stage["limit_ms"] for stage in report.stages(each, LIMIT, 1)}
        for each in (measured, with_qformer)
    ]
    assert least[1]["vision"] + least[1]["qformer"] == pytest.approx(least[0]["vision"], rel=1e-3)


def test_a_sweep_doubles_until_the_images_run_out(loaded: Loaded, refs: list[ImageRef], tmp_path: Path) -> None:
    points = sweep(loaded, OPTIONS, refs, tmp_path)
    assert list(points) == [1, 2, 4][: len(points)]
    assert len(points) >= 2
    for size, passes in points.items():
        assert len(passes) == OPTIONS.repeats
        assert {done.images_at_once for done in passes} == {size}
        rates = report.spread(passes)
        assert rates["min"] <= rates["median"] <= rates["max"]


def test_passes_and_a_sweep_end_when_their_time_is_over(
    loaded: Loaded, refs: list[ImageRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = copy_small(refs[:2], tmp_path, loaded.model.image_input, OPTIONS.decode)
    decoding = Decoding(num_images=2, read_s=0.1, decode_s=0.1)
    measured = measure(loaded, OPTIONS, refs[:2], copies, decoding, tmp_path, spare_s=0)
    assert (len(measured.whole), len(measured.alone)) == (1, 1)
    clock = iter(range(0, 10_000, 30))
    assert list(sweep(loaded, OPTIONS, refs, tmp_path, Budget(1.0, lambda: next(clock)))) == [1]


def test_a_sweep_ends_where_more_is_worse(monkeypatch: pytest.MonkeyPatch, loaded: Loaded, tmp_path: Path) -> None:
    rates = {1: 10.0, 2: 100.0, 4: 80.0, 8: 70.0, 16: 60.0}

    def run_once(loaded: Loaded, options: BenchOptions, refs: list[ImageRef], folder: Path) -> Pass:
        assert options.batch.batch_size is not None
        return pass_of(num_images=len(refs), seconds=len(refs) / rates[options.batch.batch_size])

    monkeypatch.setattr(stages, "run_once", run_once)
    many = [ImageRef(path="x", name=str(number)) for number in range(1000)]
    assert list(sweep(loaded, OPTIONS, many, tmp_path)) == [1, 2, 4, 8]
    rates[4] = 86.0
    assert list(sweep(loaded, OPTIONS, many, tmp_path)) == [1, 2, 4, 8, 16]
    assert list(sweep(loaded, OPTIONS, many[:7], tmp_path)) == [1, 2, 4]


def test_a_model_is_loaded_once_until_it_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "load", lambda checkpoint, options: object())
    loaded = Loaded(TINY)
    first = loaded.model
    assert loaded.model is first
    loaded.free()
    assert loaded.model is not first


def test_ours_is_compared_with_the_best_of_theirs() -> None:
    good = [{"batch_size": size, "images_per_s": rate, "texts": ["a", "x"]} for size, rate in ((1, 2.0), (16, 8.0))]
    bad = {"batch_size": 64, "error": "out of memory"}
    facts = baseline_facts([*good, bad], 20.0, 40.0, ["a", "b", "c"])
    assert (facts["images_per_s_before"], facts["images_per_s_after"], facts["images_per_s"]) == (20.0, 40.0, 30.0)
    assert (facts["best_batch_size"], facts["ratio"]) == (16, 3.75)
    assert (facts["num_texts_compared"], facts["num_texts_equal"]) == (2, 1)
    assert [run["error"] for run in facts["runs"]] == ["", "", "out of memory"]
    none = baseline_facts([bad], 1, 1, ["a"])
    assert (none["ratio"], none["best_batch_size"]) == (None, None)


@pytest.mark.long
def test_the_plain_script_runs_on_the_same_images(loaded: Loaded, refs: list[ImageRef], tmp_path: Path) -> None:
    folder = link(refs[:3], tmp_path / "linked")
    options = {"images": folder, "model": "tiny", "device": "cpu", "batch_size": 2, "max_new_tokens": 4, "warmup": 1}
    peer = run_peer(PLAIN, options)
    assert peer["images_per_s"] > 0
    assert peer["images"] == 3
    assert peer["versions"]["torch"] == torch.__version__
    assert peer["texts"] == run_once(loaded, OPTIONS, refs[:3], tmp_path).texts
