from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from blip2cap.cli.guard import handle_errors
from blip2cap.cli.signals import stop_on_signal
from tests.commands import TINY, draw_scenes, finish, invoke, names_below, num_lines, read_rows, start, wait_until

NUM_IMAGES = 150


def stop_a_run(here: Path, number: signal.Signals, *options: str) -> tuple[int, str]:
    """Send a signal to a run when it has some rows; return its exit code and what it said."""
    draw_scenes(here / "images", NUM_IMAGES)
    process = start("caption", "images", *TINY, "--batch-size", "1", *options, cwd=here)
    wait_until(lambda: num_lines(here / "captions.jsonl") >= 3, process)
    process.send_signal(number)
    _, stderr = finish(process)
    return process.returncode, stderr.decode()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_its_batch_and_the_same_command_goes_on(
    here: Path, number: signal.Signals, exit_code: int
) -> None:
    returncode, stderr = stop_a_run(here, number)
    num_rows = len(read_rows(here / "captions.jsonl"))
    assert returncode == exit_code
    assert 3 <= num_rows < NUM_IMAGES
    assert "Stopping after this batch; once more stops at once." in stderr
    assert f"captions.jsonl: {num_rows} ok, 0 failed" in stderr
    assert "Stopped. The rows so far are safe; run the same command again to go on." in stderr
    assert "Traceback" not in stderr
    assert invoke("caption", "images", *TINY, "--batch-size", "1").exit_code == 0
    names = [row["file_name"] for row in read_rows(here / "captions.jsonl")]
    assert names == names_below(here / "images")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rows_do_not_wait_for_a_slow_pipe_and_a_signal_ends_the_wait(here: Path) -> None:
    folder = draw_scenes(here / "images", 3)
    process = start("caption", "-", *TINY, cwd=here, stdin=subprocess.PIPE)
    assert process.stdin is not None
    for seed in range(3):
        process.stdin.write(f"{folder / f'{seed:03}.png'}\n".encode())
        process.stdin.flush()
        wait_until(lambda seed=seed: num_lines(here / "captions.jsonl") == seed + 1, process)  # type: ignore[misc]
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert process.returncode == 143
    assert b"Stopped. The rows so far are safe" in finish(process)[1]
    assert num_lines(here / "captions.jsonl") == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_said_to_a_closed_stderr_does_not_end_up_in_the_output(here: Path) -> None:
    draw_scenes(here / "images", NUM_IMAGES)
    command = f"exec {sys.executable} -m blip2cap caption images --model tiny --batch-size 1 2>&-"
    process = subprocess.Popen(["sh", "-c", command], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: num_lines(here / "captions.jsonl") >= 3, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert process.returncode == 143
    assert 3 <= len(read_rows(here / "captions.jsonl")) < NUM_IMAGES


@pytest.mark.slow
@pytest.mark.parametrize("out", [["--json"], ["-o", "-"]])
def test_a_closed_stdout_is_said_not_a_bug(here: Path, out: list[str]) -> None:
    draw_scenes(here / "images", 1)
    run = " ".join([sys.executable, "-m", "blip2cap", "caption", "images", "--model", "tiny", *out, ">&-"])
    result = subprocess.run(["sh", "-c", run], cwd=here, check=False, capture_output=True, text=True)
    assert result.returncode == 6
    assert "standard output is closed" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_a_script_told_its_jobs_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_noted_and_the_second_has_its_usual_effect(capfd: pytest.CaptureFixture[str]) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with stop_on_signal() as stop:
        assert stop.signal == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exit_code == 143
        assert {signal.getsignal(number) for number in before} == {signal.SIG_DFL}
    assert {number: signal.getsignal(number) for number in before} == before
    assert "once more stops at once" in capfd.readouterr().err


def test_a_quiet_run_says_nothing_of_a_signal(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signal(quiet=True) as stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert (stop.exit_code, capfd.readouterr().err) == (130, "")


def test_what_handled_the_signals_is_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="bug"), stop_on_signal():
        raise ValueError("bug")
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_interrupt_before_the_first_batch_ends_with_130() -> None:
    @handle_errors
    def command() -> None:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as end:
        command()
    assert end.value.exit_code == 130


def test_a_run_that_waits_for_paths_is_ended_by_a_signal(here: Path) -> None:
    process = start("caption", "-", *TINY, cwd=here, stdin=subprocess.PIPE)
    wait_until((here / "captions.jsonl").exists, process)
    process.send_signal(signal.SIGINT)
    # Python itself ends by the signal when it comes inside exec(), as in an import; shells call both 130.
    assert process.wait() in (130, -signal.SIGINT)
    assert b"Traceback" not in finish(process)[1]
    assert num_lines(here / "captions.jsonl") == 0
