"""Signals to all processes of a training, and processes that its end leaves behind."""

from __future__ import annotations

import multiprocessing.util
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from blip2cap.cli import signals
from blip2cap.cli.signals import stop_on_signal
from blip2cap.train.checkpoints import Checkpoints
from blip2cap.train.data.workers import STOPPING, WorkerContext
from tests.test_train_trainer import LOOP, difference, fit, in_child, rows, start_child
from tests.trainee_fakes import FakeData, fake_collate

WITH_WORKERS = replace(LOOP, num_workers=2, evaluate_every=3, checkpoint_every=4)


def test_processes_of_loaders_ignore_the_signals_that_stop_a_command() -> None:
    assert set(STOPPING) == set(signals._SIGNALS)


def loader(data: FakeData | None = None) -> DataLoader[object]:
    settings = {"batch_size": 2, "num_workers": 2, "collate_fn": fake_collate}
    return DataLoader(data or FakeData(), **settings, multiprocessing_context=WorkerContext())  # type: ignore[arg-type]


def wait_for_the_end(processes: list[psutil.Process]) -> None:
    """Wait until processes have ended, or are zombies, which nobody has waited for."""
    while any(has_not_ended(each) for each in processes):
        time.sleep(0.01)


def has_not_ended(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_to_a_process_that_decodes_is_nothing_to_it_and_the_loader_ends_it(number: signal.Signals) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    others = psutil.Process().children()
    batches = iter(loader())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    workers = [each for each in psutil.Process().children() if each not in others]
    assert len(workers) == 2
    subprocess.run(["kill", f"-{number:d}", *(str(each.pid) for each in workers)], check=True)
    assert len(list(batches)) == 11
    del batches
    wait_for_the_end(workers)


@pytest.mark.long
def test_all_loaders_of_a_training_have_such_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For training and validation, and for the rest of an epoch that is resumed."""
    read = FakeData.__getitem__

    def checked(data: FakeData, position: int) -> dict[str, torch.Tensor]:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= set(STOPPING)
        return read(data, position)

    monkeypatch.setattr(FakeData, "__getitem__", checked)
    for stop_after in (3, None):
        fit(tmp_path, WITH_WORKERS, val=FakeData(7), stop_after=stop_after)


@pytest.mark.timeout(60)
def test_a_loader_that_is_never_closed_does_not_keep_its_process_from_ending() -> None:
    def leave() -> None:
        batches = iter(loader(FakeData(2000)))
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # at exit: terminates processes and waits
        del batches

    assert in_child(leave) == 0


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_killed_training_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the lock of its folder, which a forked process holds too: torch's own check every 5 s would be too late."""
    monkeypatch.setattr(torch.utils.data._utils.worker, "MP_STATUS_CHECK_INTERVAL", 100)

    def kill() -> None:
        (tmp_path / "workers").write_text(" ".join(str(each.pid) for each in psutil.Process().children()))
        os.kill(os.getpid(), signal.SIGKILL)

    def train() -> None:
        fit(tmp_path, WITH_WORKERS, val=FakeData(7), at_step=kill)

    assert os.WTERMSIG(in_child(train)) == signal.SIGKILL
    pids = [int(pid) for pid in (tmp_path / "workers").read_text().split()]
    assert len(pids) == 2
    wait_for_the_end([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)])


def train_until_signalled(folder: Path) -> None:
    """Train, or resume, as the command does."""
    with stop_on_signal(quiet=True) as stop:
        stop.only_note()
        (folder / "started").touch()
        fit(folder, WITH_WORKERS, val=FakeData(7), asked_to_stop=lambda: stop.signal != 0)
        os._exit(stop.exit_code if stop.signal else 0)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_signals_to_the_whole_group_at_any_moment_end_with_a_checkpoint(tmp_path: Path) -> None:
    """Also while processes are created, at the ends of epochs and in evaluations."""
    unbroken, folder, num_stops = fit(tmp_path / "unbroken", WITH_WORKERS, val=FakeData(7)), tmp_path / "RUN", 0
    rng = random.Random(3)
    for attempt in range(40):
        folder.mkdir(exist_ok=True)
        (folder / "started").unlink(missing_ok=True)
        process, number = start_child(partial(train_until_signalled, folder)), STOPPING[attempt % len(STOPPING)]
        while not (folder / "started").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 1.0))
        os.killpg(process, number)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert code in (0, 128 + number), attempt
        with pytest.raises(ProcessLookupError):
            os.killpg(process, 0)
        steps = Checkpoints(folder / "checkpoints").steps()
        assert steps
        num_stops += code != 0
        if steps[-1] == 20:
            assert difference(fit(folder, WITH_WORKERS, val=FakeData(7)), unbroken) == 0.0
            evaluated = [[row for row in rows(each) if "val_loss" in row] for each in (folder, tmp_path / "unbroken")]
            assert evaluated[0] == evaluated[1]
            shutil.rmtree(folder)
    assert num_stops > 20
