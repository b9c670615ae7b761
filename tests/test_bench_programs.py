"""The programs that a suite measures: how they are started, and what becomes of those that fail."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pictures import Pictures
from benchmarks.programs import ProgramError, Programs, environment, flags, why
from benchmarks.suite import Facts, SkipError
from blip2cap.bench import baseline
from blip2cap.bench.plain_transformers import parser as plain_parser
from blip2cap.cli import SPIN_COUNT
from blip2cap.options import GenerateOptions

TINY: Facts = {"name": "tiny", "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    return Pictures(tmp_path_factory.mktemp("drawn"), num_processes=1).scenes(6)


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
