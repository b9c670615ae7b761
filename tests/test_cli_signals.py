from __future__ import annotations

import contextlib
import os
import random
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import typer
from PIL import Image

from blip2cap.cli import signals
from blip2cap.cli.guard import handle_errors
from blip2cap.cli.progress import Bar
from blip2cap.cli.resume import hides_secrets, quote, this_command
from blip2cap.cli.signals import Stopped, stop_on_signal
from blip2cap.cli.terminal import clean
from tests.commands import (
    TINY,
    draw_scenes,
    environment,
    finish,
    invoke,
    names_below,
    num_lines,
    read_rows,
    start,
    wait_until,
)
from tests.zygote import Stub, Zygote, put_in_place_of_the_model

NUM_IMAGES = 60
RUN = ("caption", "images", "--model", "tiny", "--batch-size", "2", "--threads", "1")
"""Options of the stand-in for the model."""
ALL = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 138}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_signal_ends_a_run_of_the_real_model_after_its_batch_and_the_same_command_goes_on(here: Path) -> None:
    draw_scenes(here / "images", NUM_IMAGES)
    command = ("caption", "images", *TINY, "--batch-size", "1")
    process = start(*command, cwd=here)
    wait_until(lambda: num_lines(here / "captions.jsonl") >= 3, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = finish(process)
    num_rows = len(read_rows(here / "captions.jsonl"))
    assert (process.returncode, 3 <= num_rows < NUM_IMAGES, b"Traceback" in stderr) == (143, True, False)
    *_, last = stderr.decode().splitlines()
    assert last == f"Stopped. The rows so far are safe. To resume: python -m {shlex.join(('blip2cap', *command))}"
    assert invoke(*command).exit_code == 0
    assert [row["file_name"] for row in read_rows(here / "captions.jsonl")] == names_below(here / "images")


@pytest.mark.long
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
    assert b"To resume, with the same paths on standard input: python -m blip2cap caption - " in finish(process)[1]
    assert num_lines(here / "captions.jsonl") == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_said_to_a_closed_stderr_does_not_end_up_in_the_output(here: Path) -> None:
    draw_scenes(here / "images", NUM_IMAGES)
    process = start("caption", "images", *TINY, "--batch-size", "1", cwd=here, stderr=None)
    wait_until(lambda: num_lines(here / "captions.jsonl") >= 3, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert process.returncode == 143
    assert 3 <= len(read_rows(here / "captions.jsonl")) < NUM_IMAGES


@pytest.mark.slow
@pytest.mark.parametrize("out", [["--json"], ["-o", "-"]])
def test_a_closed_stdout_is_said_not_a_bug(here: Path, out: list[str]) -> None:
    draw_scenes(here / "images", 1)
    process = start("caption", "images", *TINY, *out, cwd=here, stdout=None)
    stderr = finish(process)[1].decode()
    assert process.returncode == 6
    assert "standard output is closed" in stderr
    assert "Traceback" not in stderr


def test_what_handled_the_signals_is_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="bug"), stop_on_signal():
        raise ValueError("bug")
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_interrupt_before_the_first_batch_ends_with_130() -> None:
    with pytest.raises(typer.Exit) as end, handle_errors():
        raise KeyboardInterrupt
    assert end.value.exit_code == 130


def test_a_run_that_waits_for_paths_is_ended_by_a_signal(here: Path) -> None:
    process = start("caption", "-", *TINY, cwd=here, stdin=subprocess.PIPE)
    wait_until((here / "captions.jsonl").exists, process)
    process.send_signal(signal.SIGINT)
    # Python itself ends by the signal when it comes inside exec(), as in an import; shells call both 130.
    assert process.wait() in (130, -signal.SIGINT)
    assert b"Traceback" not in finish(process)[1]
    assert num_lines(here / "captions.jsonl") == 0


@pytest.fixture
def pictures(here: Path) -> Path:
    """Forty pictures, all different."""
    folder = here / "images"
    folder.mkdir()
    for number in range(40):
        Image.new("RGB", (8, 8), (number, 6 * number, 7)).save(folder / f"{number:02}.png")
    return folder


def wait_for(condition: Callable[[], bool], zygote: Zygote, process: int) -> None:
    while not condition():
        assert not zygote.has_ended(process), Path("said").read_text()
        time.sleep(0.005)


def said() -> str:
    return Path("said").read_text() if Path("said").exists() else ""


@pytest.mark.parametrize("number", ALL)
def test_every_signal_ends_a_run_after_its_batch_and_the_command_that_is_said_goes_on(
    zygote: Zygote, pictures: Path, here: Path, number: signal.Signals
) -> None:
    process = zygote.start(*RUN, cwd=here, stub=Stub(encode_s=0.05))
    wait_for(lambda: num_lines(here / "captions.jsonl") >= 2, zygote, process)
    os.kill(process, number)
    assert zygote.wait(process) == ALL[number]
    num_rows = len(read_rows(here / "captions.jsonl"))
    assert 2 <= num_rows < 40
    assert (
        f"\nStopping after this batch; a second signal stops at once.\ncaptions.jsonl: {num_rows} ok, 0 failed"
        in said()
    )
    *_, last = said().splitlines()
    command = "blip2cap caption images --model tiny --batch-size 2 --threads 1"
    assert last == f"Stopped. The rows so far are safe. To resume: {command}"
    assert "Traceback" not in said()
    assert zygote.run(*shlex.split(last.rpartition(": ")[2])[1:], cwd=here) == 0
    assert [row["file_name"] for row in read_rows(here / "captions.jsonl")] == names_below(pictures)


@pytest.mark.parametrize("number", ALL)
def test_a_signal_while_the_model_loads_ends_the_run_at_once_and_leaves_nothing(
    zygote: Zygote, pictures: Path, here: Path, number: signal.Signals
) -> None:
    process = zygote.start(*RUN, "--overwrite", cwd=here, stub=Stub(load_s=100))
    wait_for(lambda: "loading" in said(), zygote, process)
    os.kill(process, number)
    assert zygote.wait(process) == ALL[number]
    assert "\nStopping; a second signal stops at once.\nStopped before the first row. To resume: blip2cap " in said()
    assert said().endswith(" --overwrite\n"), "what was already done is there still, and would be in the way"
    assert "Traceback" not in said()
    assert sorted(path.name for path in here.iterdir()) == ["images", "said"]


def test_a_second_signal_kills_at_once_and_the_file_stays_valid(zygote: Zygote, pictures: Path, here: Path) -> None:
    process = zygote.start(*RUN, cwd=here, stub=Stub(slow_after=3, encode_s=100, log=str(here / "encoded")))
    slow_begins = 8  # the fourth batch: a signal before it would end the run at once
    wait_for(lambda: num_lines(here / "encoded") >= slow_begins, zygote, process)
    wait_for(lambda: num_lines(here / "captions.jsonl") >= 6, zygote, process)
    os.kill(process, signal.SIGTERM)
    wait_for(lambda: "Stopping" in said(), zygote, process)
    time.sleep(0.6)
    os.kill(process, signal.SIGINT)
    assert zygote.wait(process) == -signal.SIGINT
    assert len(read_rows(here / "captions.jsonl")) == 6
    assert zygote.run(*RUN, cwd=here) == 0
    assert [row["file_name"] for row in read_rows(here / "captions.jsonl")] == names_below(pictures)


def test_a_signal_that_comes_twice_in_one_moment_is_one(zygote: Zygote, pictures: Path, here: Path) -> None:
    """`timeout` signals the process, then its group."""
    process = zygote.start(*RUN, cwd=here, stub=Stub(encode_s=0.1))
    wait_for(lambda: num_lines(here / "captions.jsonl") >= 2, zygote, process)
    for _ in range(20):
        os.kill(process, signal.SIGTERM)
        time.sleep(0.001)
    assert zygote.wait(process) == 143


def test_a_run_with_overwrite_goes_on_without_it(zygote: Zygote, pictures: Path, here: Path) -> None:
    assert zygote.run(*RUN, "--limit", "3", cwd=here) == 0
    process = zygote.start(*RUN, "--overwrite", "--prompt", "it's", cwd=here, stub=Stub(encode_s=0.05))
    wait_for(lambda: num_lines(here / "captions.jsonl") == 4, zygote, process)
    os.kill(process, signal.SIGTERM)
    assert zygote.wait(process) == 143
    command = said().splitlines()[-1].rpartition(": ")[2]
    assert command == """blip2cap caption images --model tiny --batch-size 2 --threads 1 --prompt 'it'"'"'s'"""
    assert zygote.run(*shlex.split(command)[1:], cwd=here) == 0
    assert len(read_rows(here / "captions.jsonl")) == 40


def test_rows_on_standard_output_cannot_be_gone_on_with_and_that_is_said(
    zygote: Zygote, pictures: Path, here: Path
) -> None:
    process = zygote.start(*RUN, "-o", "-", cwd=here, stub=Stub(encode_s=0.05), out="rows")
    wait_for(lambda: num_lines(here / "rows") >= 2, zygote, process)
    os.kill(process, signal.SIGTERM)
    assert zygote.wait(process) == 143
    last = said().splitlines()[-1]
    assert last == "Stopped. The rows so far went to standard output; the same command starts from the beginning."
    assert 2 <= len(read_rows(here / "rows")) < 40


@pytest.mark.long
@pytest.mark.timeout(600)
def test_signals_at_any_moment_do_no_damage(zygote: Zygote, pictures: Path, here: Path) -> None:
    """While it starts, loads, writes and finishes."""
    rng, out = random.Random(7), here / "captions.jsonl"
    assert zygote.run(*RUN, "-o", "undisturbed.jsonl", cwd=here) == 0
    codes = set()
    for attempt in range(40):
        number = rng.choice([*ALL])
        (here / "said").unlink(missing_ok=True)
        process = zygote.start(*RUN, cwd=here, stub=Stub(encode_s=0.002))
        wait_for(lambda: "loading" in said() or "already done" in said(), zygote, process)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(process, number)
        code = zygote.wait(process)
        assert code in (ALL[number], 0, -number), said()
        assert "Traceback" not in said(), f"attempt {attempt}: {said()}"
        codes.add(code)
        if num_lines(out) == 40 or attempt % 3 == 0:
            out.unlink(missing_ok=True)
    assert {0, 130, 143} <= {*codes, 0}
    assert zygote.run(*RUN, cwd=here) == 0
    assert out.read_bytes() == (here / "undisturbed.jsonl").read_bytes()
    assert not [*here.glob("*.tmp")]


@pytest.mark.parametrize(
    "argument",
    [
        "plain",
        "two words",
        "it's",
        "a\nb",
        "\x1b[31mred\x07",
        "back\\slash\n'",
        "\udcff.jpg",
        "\u202egnp.\u200b",
        "-x",
        "$HOME\n",
    ],
)
def test_the_command_that_is_said_means_the_same_to_a_shell_and_steers_no_terminal(argument: str) -> None:
    quoted = quote(["printf", "%s", argument])
    assert clean(quoted) == quoted
    assert subprocess.run(["bash", "-c", quoted], capture_output=True, check=True).stdout == os.fsencode(argument)


def test_the_command_that_is_said_leaves_out_a_flag_but_no_file_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["caption", "--overwrite", "-o", "x.jsonl", "--", "--overwrite"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/blip2cap", *arguments])
    assert this_command(without="--overwrite") == "blip2cap caption -o x.jsonl -- --overwrite"
    monkeypatch.setattr(sys, "argv", ["/somewhere/blip2cap/__main__.py", *arguments])
    assert this_command() == "python -m blip2cap caption --overwrite -o x.jsonl -- --overwrite"


def test_the_command_that_is_said_holds_no_secret_of_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["caption", "https://user:secret@host/x.jpg?signature=secret", "{http://h/a?secret,http://h/b?secret}"]
    monkeypatch.setattr(sys, "argv", ["blip2cap", *arguments, "-q", "why?"])
    assert this_command() == "blip2cap caption 'https://host/x.jpg?...' '{http://h/a?...' -q 'why?'"
    assert hides_secrets()
    monkeypatch.setattr(sys, "argv", ["blip2cap", "caption", "https://host/x.jpg", "s3://bucket/", "-q", "why?"])
    assert not hides_secrets()


def test_a_run_that_is_stopped_says_that_its_urls_have_to_be_filled_in(zygote: Zygote, here: Path) -> None:
    command = ("caption", "https://user:secret@localhost/x.jpg?signature=secret", "--allow-http", "--model", "tiny")
    process = zygote.start(*command, cwd=here, stub=Stub(load_s=100))
    wait_for(lambda: "loading" in said(), zygote, process)
    os.kill(process, signal.SIGTERM)
    assert zygote.wait(process) == 143
    *_, last = said().splitlines()
    assert last == (
        "Stopped before the first row. To resume, with the URLs filled in again (users, passwords and queries are not "
        "shown): blip2cap caption 'https://localhost/x.jpg?...' --allow-http --model tiny"
    )
    assert "secret" not in said()


def test_a_reader_of_rows_that_leaves_ends_the_run_quietly(zygote: Zygote, pictures: Path, here: Path) -> None:
    os.mkfifo(here / "rows")
    reader = os.open(here / "rows", os.O_RDONLY | os.O_NONBLOCK)
    process = zygote.start(*RUN, "-o", "-", "--quiet", cwd=here, stub=Stub(encode_s=0.01), out="rows")
    wait_for(lambda: select.select([reader], [], [], 0)[0] != [], zygote, process)
    time.sleep(0.1)
    assert os.read(reader, 1000).startswith(b'{"file_name"')
    os.close(reader)
    assert zygote.wait(process) == 141
    assert said() == ""


def test_a_reader_of_messages_that_leaves_ends_the_run_quietly_too(zygote: Zygote, pictures: Path, here: Path) -> None:
    (pictures / "00.png").write_bytes(b"no image")
    os.mkfifo(here / "said")
    reader = os.open(here / "said", os.O_RDONLY | os.O_NONBLOCK)
    process = zygote.start(*RUN, cwd=here, stub=Stub(load_s=0.2))
    assert select.select([reader], [], [], 60)[0] == [reader]
    os.close(reader)
    assert zygote.wait(process) == 141


def test_a_terminal_that_is_closed_does_not_end_a_run(zygote: Zygote, pictures: Path, here: Path) -> None:
    """With nohup, or in a session of its own: nobody reads its messages any more."""
    (pictures / "00.png").write_bytes(b"no image")
    ours, theirs = os.openpty()
    process = zygote.start(*RUN, cwd=here, stub=Stub(load_s=0.2, encode_s=0.01), said=os.ttyname(theirs), out="rows")
    assert b"loading" in os.read(ours, 1000)
    os.close(theirs)  # only now: the process may have been slow to open it
    os.close(ours)
    assert zygote.wait(process) == 3
    assert [row["file_name"] for row in read_rows(here / "captions.jsonl")] == names_below(pictures)


@pytest.mark.parametrize("number", ALL)
def test_what_a_script_told_its_jobs_to_ignore_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            assert signal.getsignal(number) is signal.SIG_IGN
            os.kill(os.getpid(), number)
            assert stop.signal == 0
    finally:
        signal.signal(number, before)


def test_before_the_first_row_a_signal_raises_and_later_it_is_noted(capfd: pytest.CaptureFixture[str]) -> None:
    before = {number: signal.getsignal(number) for number in (*ALL, signal.SIGALRM)}
    timer = signal.getitimer(signal.ITIMER_REAL)[0] > 0
    with pytest.raises(Stopped) as stopped, stop_on_signal():
        os.kill(os.getpid(), signal.SIGHUP)
    assert stopped.value.exit_code == 129
    with stop_on_signal() as stop:
        stop.only_note()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exit_code == 143
    assert {number: signal.getsignal(number) for number in before} == before
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == timer
    first, second = capfd.readouterr().err.split("a second signal stops at once.")[:2]
    assert (first.strip(), second.strip()) == ("Stopping;", "Stopping after this batch;")


def test_a_signal_that_a_library_has_swallowed_is_not_forgotten() -> None:
    with pytest.raises(Stopped), stop_on_signal(quiet=True) as stop:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        stop.only_note()


def test_an_end_that_hangs_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(signals, "_GRACE_S", 0.05)
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(Stopped), stop_on_signal(quiet=True):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            threading.Event().wait(0.2)  # as a pool of threads that download
    assert codes == [143]


def test_a_quiet_run_says_nothing_of_a_signal(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signal(quiet=True) as stop:
        stop.only_note()
        os.kill(os.getpid(), signal.SIGINT)
    assert (stop.exit_code, capfd.readouterr().err) == (130, "")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_benchmark_that_is_stopped_takes_its_folder_of_scenes_away(here: Path) -> None:
    command = ("bench", *TINY, "--batch-size", "2", "--num-images", "3000", "--image-size", "64x48")
    process = start(*command, cwd=here, env=environment(TMPDIR=str(here)))
    wait_until(lambda: bool([*here.glob("blip2cap-bench-*/*.jpg")]), process)
    process.send_signal(signal.SIGTERM)
    _, stderr = finish(process)
    assert (process.returncode, b"Traceback" in stderr) == (143, False), stderr
    assert [*here.glob("blip2cap*")] == []


def test_a_run_leaves_no_thread_and_no_process_behind(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = put_in_place_of_the_model(Stub())
    monkeypatch.setitem(sys.modules, ready.__name__, ready)
    (pictures / "00.png").write_bytes(b"no image")
    threads, processes = threading.enumerate(), psutil.Process().children(recursive=True)
    assert invoke(*RUN).exit_code == 3
    assert invoke(*RUN).exit_code == 3, "nothing to do"
    assert threading.enumerate() == threads
    assert psutil.Process().children(recursive=True) == processes


def test_a_bar_leaves_no_thread_behind_even_while_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.enumerate()
    counting = threading.Event()

    def count(given_up: Callable[[], bool]) -> int:
        counting.set()
        while not given_up():
            time.sleep(0.001)
        return 1

    bar = Bar(count)
    assert counting.wait(60)
    bar.update(1, 0)
    bar.close()
    assert threading.enumerate() == threads
    assert bar.bar.total is None
