"""The programs that are measured: how they are started, and what happens to those that fail."""

from __future__ import annotations

import threading
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest

from benchmarks.measure import Facts, Job, serve
from benchmarks.pictures import Pictures
from benchmarks.programs import Programs
from blip2cap.bench.programs import ProgramError, SkipError, flags, peak_rss_mb, run_peer, why
from blip2cap.options import ModelOptions
from tests.benches import TINY


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    return Pictures(tmp_path_factory.mktemp("drawn"), num_processes=1).scenes(6)


@pytest.fixture
def peer_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A script that prints what it was given, or does what its first option asks for."""
    (tmp_path / "some_peer.py").write_text(
        "import json, os, sys, time\n"
        "if '--fail=1' in sys.argv: sys.exit('it is\\nimpossible')\n"
        "if '--sleep=1' in sys.argv: time.sleep(60)\n"
        "print('noise')\n"
        "if '--mute=1' in sys.argv: sys.exit()\n"
        "facts = {'skipped': 'no need'} if '--skip=1' in sys.argv else {'argv': sys.argv[1:], 'versions': {}}\n"
        "if '--env=1' in sys.argv: facts = {name: os.environ.get(name) for name in ('PATH', 'GOMP_SPINCOUNT')}\n"
        "print(json.dumps(facts))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "some_peer"


def test_a_peer_says_what_it_measured_or_why_it_has_nothing(peer_module: str) -> None:
    programs = Programs(lambda: 60.0)
    assert programs.peer(peer_module, images="x", limit=3) == {"argv": ["--json", "--images=x", "--limit=3"]}
    with pytest.raises(ProgramError, match=r"^impossible$"):
        programs.peer(peer_module, fail=1)
    with pytest.raises(ProgramError, match="ended with code 0 and no result"):
        programs.peer(peer_module, mute=1)
    with pytest.raises(SkipError, match="no need"):
        programs.peer(peer_module, skip=1)
    with pytest.raises(ProgramError, match="no result after 1 s"):
        Programs(lambda: 1.0).peer(peer_module, sleep=1)


def test_a_peer_runs_as_a_user_would_start_it(peer_module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    variables = run_peer(peer_module, {"env": 1})
    assert variables["PATH"]
    assert variables["GOMP_SPINCOUNT"] is None


def test_options_become_flags() -> None:
    options = {"batch_size": 4, "json": True, "random_weights": False, "question": ["a b", "-c"], "none": ()}
    assert flags(options) == ["--batch-size=4", "--json", "--question=a b", "--question=-c"]


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [
        (-9, "", "ended by signal 9: out of memory?"),
        (-6, "x", "ended by signal 6"),
        (1, "a\nb: c\n", "b: c"),
        (2, "", "ended with code 2 and no result"),
    ],
)
def test_why_a_program_gave_no_result_is_one_line(code: int, stderr: str, reason: str) -> None:
    assert why(code, stderr) == reason


def test_the_peak_memory_of_this_process_is_known() -> None:
    assert 50 < peak_rss_mb() < 1e5


def served(model: ModelOptions, *jobs: Job) -> list[Facts]:
    """Return the answers of a worker that is a thread."""
    ours, theirs = Pipe()
    thread = threading.Thread(target=serve, args=(theirs, model))
    thread.start()
    answers: list[Facts] = []
    for job in jobs:
        ours.send(job)
        answers.append(ours.recv())
    ours.close()
    thread.join()
    theirs.close()
    return answers


def test_jobs_are_answered_one_by_one_with_one_model(drawn: str) -> None:
    answers = served(TINY, *(Job(images=drawn, num_images=number) for number in (2, 7, 3)))
    assert answers[1] == {"error": f"ValueError: {drawn} has only 6 JPEG files"}
    assert (answers[0]["rows"], answers[2]["rows"], answers[2]["load_s"]) == (2, 3, answers[0]["load_s"])


def test_a_model_that_cannot_be_found_is_the_answer(drawn: str) -> None:
    (answer,) = served(replace(TINY, name="no such-model/"), Job(images=drawn))
    assert "no such-model" in answer["error"]


@pytest.mark.long
def test_ours_is_measured_in_a_process_that_keeps_its_model(drawn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    programs = Programs(lambda: 600.0)
    try:
        assert programs.ours(TINY, Job(images=drawn, num_images=2))["rows"] == 2
        worker = programs.worker
        assert worker is not None
        with pytest.raises(ProgramError, match="has only 6 JPEG files"):
            worker.ask(Job(images=drawn, num_images=7), 600.0)
        assert programs.ours(TINY, Job(images=drawn, num_images=3))["rows"] == 3
        assert programs.worker is worker
        worker.process.kill()
        with pytest.raises(ProgramError, match="ended by signal 9"):
            programs.ours(TINY, Job(images=drawn))
        assert programs.worker is None
    finally:
        programs.close()


def test_a_process_that_takes_too_long_is_stopped(drawn: str) -> None:
    programs = Programs(lambda: 0.1)
    with pytest.raises(ProgramError, match="no result after 0 s"):
        programs.ours(TINY, Job(images=drawn))
    assert programs.worker is None
