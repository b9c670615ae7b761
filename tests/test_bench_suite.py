"""The unattended suites of the folder benchmarks: sections, programs, jobs. No test asserts a time."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cpu, gpu, pictures
from benchmarks.lengths import LONGEST, SHORTEST, spread
from benchmarks.measure import Job, Measurer
from benchmarks.pictures import Pictures
from benchmarks.programs import ProgramError, Programs, environment, flags, why
from benchmarks.suite import Facts, Section, SkipError, Suite, arguments, judge
from blip2cap.bench import baseline, benchmark
from blip2cap.bench.plain_transformers import parser as plain_parser
from blip2cap.cli import SPIN_COUNT
from blip2cap.options import GenerateOptions, ModelOptions
from tests.checkpoints import make_checkpoint

TINY: Facts = {"name": "tiny", "device": "cpu", "dtype": "float32"}


class Clock:
    """Stands still until it is told otherwise."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def suite_of(folder: Path, **values: Any) -> Suite:
    return Suite(folder / "out.json", {"machine": "mine"}, say=lambda line: None, **values)


def written(folder: Path) -> Facts:
    facts: Facts = json.loads((folder / "out.json").read_text())
    return facts


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    return Pictures(tmp_path_factory.mktemp("drawn"), num_processes=1).scenes(6)


@pytest.fixture(scope="module")
def measurer() -> Measurer:
    return Measurer(ModelOptions(**TINY))


def test_a_section_that_fails_keeps_what_it_found_and_the_next_one_runs(tmp_path: Path) -> None:
    def bad(facts: Facts) -> None:
        facts["before"] = 1
        raise RuntimeError("no luck\nat all")

    def good(facts: Facts) -> None:
        assert written(tmp_path)["sections"]["bad"]["before"] == 1, "the file is written after each section"
        facts["found"] = 2

    assert suite_of(tmp_path).run({"bad": bad, "good": good}) == 1
    result = written(tmp_path)
    assert result["machine"] == "mine"
    assert result["sections"]["bad"] == {"seconds": 0.0, "before": 1, "error": "RuntimeError: no luck"} | {
        "seconds": result["sections"]["bad"]["seconds"]
    }
    assert result["sections"]["good"]["found"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_nothing_begins_after_the_deadline(tmp_path: Path) -> None:
    clock = Clock()
    suite = suite_of(tmp_path, clock=clock, minutes=2)

    def long(facts: Facts) -> None:
        facts["left_s"] = suite.left_s()
        suite.attempt(facts, "first", lambda: 1)
        clock.now = 121
        assert suite.attempt(facts, "second", lambda: 2) is None

    def late(facts: Facts) -> None:
        facts["begun"] = True

    assert suite.run({"long": long, "late": late}) == 0
    sections = written(tmp_path)["sections"]
    assert sections["long"] == {
        "seconds": 121.0,
        "left_s": 140.0,
        "first": 1,
        "second": {"skipped": "the 2 minutes are over"},
    }
    assert sections["late"] == {"seconds": 0.0, "skipped": "the 2 minutes are over"}


def test_parts_of_a_section_fail_alone(tmp_path: Path) -> None:
    suite = suite_of(tmp_path)

    def fail(error: Exception) -> None:
        raise error

    def section(facts: Facts) -> None:
        assert suite.attempt(facts, "bad", partial(fail, ValueError("no"))) is None
        assert suite.attempt(facts, "absent", partial(fail, SkipError("not here"))) is None
        assert suite.attempt(facts, "good", lambda: 3) == 3

    assert suite.run({"section": section}) == 1
    facts = written(tmp_path)["sections"]["section"]
    assert facts["bad"] == {"error": "ValueError: no"}
    assert facts["absent"] == {"skipped": "not here"}
    assert facts["good"] == 3


def test_only_the_sections_asked_for_run(tmp_path: Path) -> None:
    def section(facts: Facts) -> None:
        facts["ran"] = True

    sections: dict[str, Section] = dict.fromkeys(("a", "b", "c"), section)
    assert suite_of(tmp_path, only=["a", "c"]).run(sections) == 0
    assert list(written(tmp_path)["sections"]) == ["a", "c"]


def test_options_of_a_suite_are_checked_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.json")
    options = arguments("", ["a", "b"], ["--out", out, "--only", "a", "--only", "b"])
    assert (options.only, options.minutes) == (["a", "b"], 8.5)
    for argv in (["--out", out, "--only", "c"], ["--out", str(tmp_path / "none" / "out.json")], []):
        with pytest.raises(SystemExit):
            arguments("", ["a", "b"], argv)
    assert "no such folder" in capsys.readouterr().err


def test_figures_stand_beside_what_they_should_reach() -> None:
    facts: Facts = {}
    judge(facts, "rate", 3.14159, at_least=3)
    judge(facts, "time", 2.0, at_most=1.5)
    judge(facts, "unknown", None, at_least=1)
    assert facts["figures"] == {
        "rate": {"value": 3.142, "at_least": 3, "reached": True},
        "time": {"value": 2.0, "at_most": 1.5, "reached": False},
    }


def test_peers_run_as_a_user_would_start_them_and_ours_as_the_command_line_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert environment(ours=True)["GOMP_SPINCOUNT"] == SPIN_COUNT
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    assert environment(ours=True)["GOMP_SPINCOUNT"] == "5"
    assert "GOMP_SPINCOUNT" not in environment(ours=False)
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in environment(ours=True)


def test_the_plain_script_of_bench_runs_without_what_our_command_line_sets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: Facts = {}

    def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        given.update(settings, command=command)
        return subprocess.CompletedProcess(command, 1, "", "no")

    monkeypatch.setenv("GOMP_SPINCOUNT", SPIN_COUNT)
    monkeypatch.setattr(subprocess, "run", run)
    generate = GenerateOptions(max_new_tokens=7, min_new_tokens=7)
    baseline.run_plain(
        tmp_path, 2, num_images=3, model="tiny", random_weights=False, device="cpu", generate=generate, questions=()
    )
    assert "PATH" in given["env"]
    assert "GOMP_SPINCOUNT" not in given["env"]
    options = plain_parser("").parse_args(given["command"][3:])
    assert (options.max_new_tokens, options.min_new_tokens) == (7, 7)


@pytest.fixture
def peer_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A script that says what it was given, or what its first option asks for."""
    (tmp_path / "some_peer.py").write_text(
        "import json, sys, time\n"
        "if '--fail=1' in sys.argv: sys.exit('it is\\nimpossible')\n"
        "if '--sleep=1' in sys.argv: time.sleep(60)\n"
        "print('noise')\n"
        "facts = {'skipped': 'no need'} if '--skip=1' in sys.argv else {'argv': sys.argv[1:], 'versions': {}}\n"
        "print(json.dumps(facts))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "some_peer"


def test_a_peer_says_what_it_measured_or_why_it_has_nothing(peer_module: str) -> None:
    programs = Programs(lambda: 60.0)
    assert programs.peer(peer_module, images="x", limit=3) == {"argv": ["--json", "--images=x", "--limit=3"]}
    with pytest.raises(ProgramError, match=r"^impossible$"):
        programs.peer(peer_module, fail=1)
    with pytest.raises(SkipError, match="no need"):
        programs.peer(peer_module, skip=1)
    with pytest.raises(ProgramError, match="no result after 1 s"):
        Programs(lambda: 1.0).peer(peer_module, sleep=1)


def test_options_become_flags() -> None:
    assert flags({"batch_size": 4, "json": True, "question": ["a b", "-c"]}) == [
        *("--batch-size=4", "--json"),
        *("--question=a b", "--question=-c"),
    ]


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [(-9, "", "ended by signal 9: out of memory?"), (1, "a\nb\n", "b"), (2, "", "ended with code 2 and no result")],
)
def test_why_a_program_gave_no_result_is_one_line(code: int, stderr: str, reason: str) -> None:
    assert why(code, stderr) == reason


@pytest.mark.slow
def test_ours_is_measured_in_a_process_that_keeps_its_model(drawn: str) -> None:
    programs = Programs(lambda: 60.0)
    try:
        first = programs.ours(TINY, {"images": drawn, "num_images": 2})
        worker = programs.worker
        again = programs.ours(TINY, {"images": drawn, "num_images": 3})
        assert programs.worker is worker
        assert (first["rows"], again["rows"], again["load_s"]) == (2, 3, first["load_s"])
        with pytest.raises(ProgramError, match=r"TypeError: .*colour"):
            programs.ours(TINY, {"images": drawn, "colour": "red"})
        assert programs.worker is None
        with pytest.raises(ProgramError, match="no such-model"):
            programs.ours({"name": "no such-model/"}, {"images": drawn})
    finally:
        programs.close()


def test_a_process_that_takes_too_long_is_ended(drawn: str) -> None:
    programs = Programs(lambda: 0.1)
    with pytest.raises(ProgramError, match="no result after 0 s"):
        programs.ours(TINY, {"images": drawn})
    assert programs.worker is None


def test_a_job_is_a_real_run_from_files_to_rows(measurer: Measurer, drawn: str) -> None:
    facts = measurer.measure(Job(images=drawn, warmup=1, batch_size=2, repeats=2, new_tokens=4))
    assert (facts["images"], facts["rows"]) == (6, 6)
    assert facts["counts"]["vision"] == 3
    assert facts["images_at_once"] == facts["texts_at_once"] == 2
    assert 0 < facts["new_tokens"] <= 4
    assert {"vision", "prefill", "step"} <= facts["stages_s"].keys()
    assert (facts["dtype"], facts["device"]) == ("float32", "cpu")
    assert len(facts["all_images_per_s"]) == 2
    assert len(facts["texts"]) == 3
    assert json.loads(json.dumps(facts)) == facts


def test_every_question_of_a_job_makes_a_row(measurer: Measurer, drawn: str) -> None:
    facts = measurer.measure(Job(images=drawn, num_images=2, questions=["is it day or night?", "where is this?"]))
    assert (facts["images"], facts["rows"]) == (2, 4)


def test_images_and_texts_at_once_can_differ(measurer: Measurer, drawn: str) -> None:
    facts = measurer.measure(Job(images=drawn, image_batch=3, max_texts=6))
    assert facts["counts"]["vision"] == 2
    assert (facts["images_at_once"], facts["texts_at_once"]) == (3, 6)


def test_switches_of_a_job_last_as_long_as_the_job(measurer: Measurer, drawn: str) -> None:
    model = measurer.model
    before = model.graphs, model.check_every
    facts = measurer.measure(Job(images=drawn, num_images=2, check_every=5, decode="exact", threads=1))
    assert facts["rows"] == 2
    assert (model.graphs, model.check_every) == before


def test_jobs_that_cannot_be_done_say_so(measurer: Measurer, drawn: str) -> None:
    with pytest.raises(ValueError, match="must be one of run, stages, lengths"):
        measurer.measure(Job(images=drawn, what="x"))
    with pytest.raises(ValueError, match="has only 6"):
        measurer.measure(Job(images=drawn, num_images=7))


def test_stages_are_those_of_the_bench_command(measurer: Measurer, drawn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "matrix_rate", lambda *args: 1e12)
    monkeypatch.setattr(benchmark, "memory_rate", lambda *args: 1e10)
    facts = measurer.measure(Job(images=drawn, what="stages", batch_size=2))
    assert facts["images"]["num_images"] == 6
    assert facts["figures"]["share_of_limit"] > 0
    assert facts["model"]["name"] == "tiny"
    assert {"vision", "step"} <= {stage["stage"] for stage in facts["figures"]["stages"]}


def test_random_weights_end_no_text(drawn: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "opt")
    options = ModelOptions(name=str(folder), random_weights=True, device="cpu", dtype="float32")
    facts = Measurer(options).measure(Job(images=drawn, new_tokens=9))
    assert facts["new_tokens"] == 9


def test_lengths_are_spread_evenly_and_mixed() -> None:
    lengths = spread()
    assert (min(lengths), max(lengths)) == (SHORTEST, LONGEST)
    assert sum(lengths) == len(lengths) * (SHORTEST + LONGEST) / 2
    assert max(Counter(lengths).values()) <= 3
    assert lengths != sorted(lengths)


def test_texts_of_many_lengths_take_steps_for_their_mean(measurer: Measurer, drawn: str) -> None:
    facts = measurer.measure(Job(images=drawn, what="lengths"))
    steps = {name: facts[name]["num_steps"] for name in ("mean", "spread", "longest")}
    assert facts["mean"]["num_tokens"] * 3 == facts["spread"]["num_tokens"] == 48 * 12
    assert (steps["mean"], steps["longest"]) == (11, 19)
    # 16 places, 48 texts: what is above the mean is the end, where the last texts run alone.
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
def test_many_pictures_are_drawn_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_FEW", 2)
    alone = Pictures(tmp_path / "alone", num_processes=1).scenes(5)
    together = Pictures(tmp_path / "together", num_processes=2).scenes(5)
    contents = [{path.name: path.read_bytes() for path in Path(folder).iterdir()} for folder in (alone, together)]
    assert contents[0] == contents[1]


class FakePrograms(Programs):
    """Measures nothing, but looks at what it is asked."""

    def __init__(self) -> None:
        super().__init__(lambda: 60.0)
        self.jobs: list[Job] = []
        self.peers: list[argparse.Namespace] = []

    def ours(self, model: Facts, job: Facts) -> Facts:
        ModelOptions(**model)
        found = Job(**json.loads(json.dumps(job)))
        found.setup("opt")
        self.jobs.append(found)
        if found.what == "stages":
            return {"figures": {"images_per_s": {"median": 700.0}, "share_of_limit": 0.7, "overhead": 0.01}}
        if found.what == "lengths":
            return {"spread_to_mean": 1.1, "spread_to_longest": 0.7}
        rate = 500.0 / len(found.questions or [1])
        return {"images_per_s": rate, "s_per_image": 1 / rate, "seconds": 1000 / rate, "overhead": 0.02}

    def peer(self, module: str, **options: Any) -> Facts:
        found = plain_parser("", dtypes=("auto", "float32", "bfloat16")).parse_args(flags(options))
        self.peers.append(found)
        if module.endswith("vllm_opt"):
            raise SkipError("not installed")
        return {"images_per_s": 100.0 if found.batch_size < 256 else 125.0}


class FakePictures(Pictures):
    """Draws nothing."""

    def scenes(self, count: int) -> str:
        return "scenes"

    def large(self, count: int) -> str:
        return "large"


def test_every_section_on_a_cpu_asks_for_what_there_is(tmp_path: Path) -> None:
    suite, programs = suite_of(tmp_path), FakePrograms()
    measured = cpu.Cpu(suite, programs, FakePictures(tmp_path))
    sections = {name: partial(section, measured) for name, section in cpu.SECTIONS.items() if name != "decode"}
    assert suite.run(sections) == 0
    figures = {name: facts["figures"] for name, facts in written(tmp_path)["sections"].items()}
    assert figures["tiny"]["times_the_plain_script"] == {"value": 5.0, "at_least": 3, "reached": True}
    assert figures["questions"]["times_one_by_one"]["value"] == 1.0  # the fake knows no better
    assert {"bfloat16_s_per_image", "int8_times_float32_script", "overhead", "spread_lengths_to_mean_length"} <= set(
        figures["opt-2.7b"]
    )
    assert {peer.batch_size for peer in programs.peers if not peer.random_weights} == {1, 16, 64, 128}
    assert all(peer.min_new_tokens == peer.max_new_tokens == 12 for peer in programs.peers if peer.random_weights)


def test_every_section_on_a_gpu_asks_for_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, programs = suite_of(tmp_path), FakePrograms()
    measured = gpu.Gpu(suite, programs, FakePictures(tmp_path))
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert suite.run({name: partial(section, measured) for name, section in gpu.SECTIONS.items()}) == 0
    sections = written(tmp_path)["sections"]
    assert sections["fp8"]["skipped"] == "torchao is not installed"
    assert sections["peers"]["vllm"] == {"skipped": "not installed"}
    assert sections["peers"]["figures"] == {
        "times_the_plain_script": {"value": 4.0, "at_least": 4, "reached": True},
        "times_the_tuned_script": {"value": 4.0, "at_least": 1.5, "reached": True},
    }
    assert sections["opt-2.7b"]["figures"]["images_per_s"]["reached"]
    assert set(sections["ladder"]["figures"]) == set(gpu.LADDER)
    assert {job.num_images for job in programs.jobs} <= {256, 1024, 2048, 4096}


def test_without_a_gpu_nothing_is_measured_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert "sees no GPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_a_result_names_is_one_that_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.suite import about

    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/cpu.py", "--out", "x.json"])
    facts = about("cpu", None)
    assert facts["command"] == "python benchmarks/cpu.py --out x.json"
    assert facts["machine"]["versions"]["torch"] == torch.__version__
