"""Disks that are full during a training, at any of its files, and the same training afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from blip2cap.errors import OutputError
from blip2cap.train.checkpoints import Checkpoints
from blip2cap.train.logs import RowFile
from blip2cap.train.model.finished import save_folder
from blip2cap.train.plot import plot_losses
from blip2cap.train.run_folder import RunFolder
from blip2cap.train.write_errors import write_errors
from tests.files import ERRORS, Counting, Failing
from tests.full_disk import files_of_at_most
from tests.test_train_trainer import difference, fit, rows
from tests.trainee_fakes import FakeData, FakeTrainee

REMEDY = r"Free disk space or repair the disk, then run the same command again: it continues at the last checkpoint"
TENSOR = torch.zeros(1000)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeTrainee, Path]:
    folder = tmp_path_factory.mktemp("unbroken")
    return fit(folder, val=FakeData(7)), folder


def fit_on_a_disk_that_fills(folder: Path, num_bytes: int, *, from_step: int) -> None:
    """Train; from a step on, no file can have more than `num_bytes`."""
    step = 0
    with ExitStack() as stack:

        def fill() -> None:
            nonlocal step
            step += 1
            if step == from_step:
                stack.enter_context(files_of_at_most(num_bytes))

        fit(folder, val=FakeData(7), at_step=fill)


@pytest.mark.parametrize(
    ("num_bytes", "name", "reason"),
    [
        (400, "metrics.jsonl", "File too large"),
        (1000, "checkpoints/step-000004", "File too large"),  # the state of the training
        pytest.param(3000, "checkpoints/step-000004", "torch could not write a whole file", marks=pytest.mark.long),
        (8000, "checkpoints/step-000004", "torch could not write a whole file"),  # the random numbers: the last file
    ],
)
def test_a_training_on_a_full_disk_ends_with_an_error_and_goes_on_bit_for_bit(
    tmp_path: Path, unbroken: tuple[FakeTrainee, Path], num_bytes: int, name: str, reason: str
) -> None:
    with pytest.raises(OutputError, match=f"{name} cannot be written: {reason}. {REMEDY}") as caught:
        fit_on_a_disk_that_fills(tmp_path, num_bytes, from_step=3)
    assert caught.value.exit_code == 6
    assert os.listdir(tmp_path / "checkpoints") == ["step-000002"]
    assert difference(fit(tmp_path, val=FakeData(7)), unbroken[0]) == 0.0
    assert rows(tmp_path) == rows(unbroken[1])


def test_on_a_disk_that_is_really_full_the_checkpoint_before_stays(
    small_disk: Path, tmp_path: Path, unbroken: tuple[FakeTrainee, Path]
) -> None:
    with pytest.raises(OutputError, match=f"step-00000[46] cannot be written: .*{REMEDY}"):
        fit(small_disk, val=FakeData(7))  # of 64 KiB
    (left,) = os.listdir(small_disk / "checkpoints")
    assert left in ("step-000002", "step-000004")
    folder = shutil.copytree(small_disk, tmp_path / "larger disk")
    assert difference(fit(folder, val=FakeData(7)), unbroken[0]) == 0.0


def write_checkpoint(checkpoints: Checkpoints, step: int) -> None:
    with checkpoints.writing(step, writer=True, wait=lambda: None) as folder:
        for name in ("a", "b"):
            (folder / name).write_text(f"{name} of {step}")
    checkpoints.keep({step})


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_any_operation_of_a_checkpoint_may_fail_and_no_half_one_has_its_name(tmp_path: Path, error: str) -> None:
    counting = Counting()
    write_checkpoint(Checkpoints(tmp_path / "well", counting), 1)
    failures = []
    for at, name in enumerate([*counting.names, "replace"]):
        folder = tmp_path / str(at)
        write_checkpoint(Checkpoints(folder), 1)
        try:
            write_checkpoint(Checkpoints(folder, Failing(at, ERRORS[error])), 2)
        except OutputError as failure:
            failures.append(str(failure))
        assert not list(folder.glob(".step-000002.tmp"))
        steps = Checkpoints(folder).steps()
        assert steps in ([1], [1, 2], [2]), name
        for step in steps:
            path = Checkpoints(folder).path(step)
            assert {each.name: each.read_text() for each in path.iterdir()} == {n: f"{n} of {step}" for n in "ab"}
        write_checkpoint(Checkpoints(folder), 2)
        assert os.listdir(folder) == ["step-000002"]
    assert len(failures) > 10
    assert all(REMEDY in failure for failure in failures)


def write_json(path: Path) -> None:
    path.write_text("x" * 10_000)


def test_a_file_of_torch_may_be_cut_at_any_byte(tmp_path: Path) -> None:
    state = {"a": TENSOR, "b": TENSOR[:9]}
    torch.save(state, tmp_path / "file")
    for num_bytes in range(0, (tmp_path / "file").stat().st_size, 50):
        with files_of_at_most(num_bytes), pytest.raises(OutputError, match=REMEDY), write_errors(tmp_path / "file"):
            torch.save(state, tmp_path / "file")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_json, "File too large"),
        (lambda path: save_file({"a": TENSOR}, path), "File too large"),
        (lambda path: torch.save(TENSOR, path), "torch could not write a whole file"),
        (lambda path: save_file({"a": TENSOR}, path.parent / "gone/file"), "No such file or directory"),
        (lambda path: torch.save(TENSOR, path.parent / "gone/file"), "torch could not write a whole file"),
    ],
)
def test_errors_of_every_writer_are_one(tmp_path: Path, write: Callable[[Path], None], reason: str) -> None:
    with files_of_at_most(100), pytest.raises(OutputError) as caught, write_errors(tmp_path / "file"):
        write(tmp_path / "file")
    assert str(caught.value).startswith(f"{tmp_path / 'file'} cannot be written: {reason}. {REMEDY}")


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), write_errors(tmp_path):
        torch.zeros(2).reshape(3)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda folder: RowFile(folder / "metrics.jsonl").truncate(100), "metrics.jsonl"),
        (lambda folder: plot_losses([{"step": 1, "loss": 2.0}], folder, title="x"), "loss.png"),
        (lambda folder: RunFolder(folder).begin({"task": "caption", "data": {"data": "x" * 100}}), "recipe.toml"),
        (lambda folder: save_folder(folder, lambda new: save_file({"a": TENSOR}, new / "model.safetensors")), ""),
    ],
)
def test_every_other_file_of_a_training_may_not_fit(tmp_path: Path, write: Callable[[Path], None], name: str) -> None:
    (tmp_path / "run").mkdir()
    if name == "metrics.jsonl":
        RowFile(tmp_path / "run" / name).add({"step": 1, "text": "x" * 100})
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with files_of_at_most(100), pytest.raises(OutputError) as caught:
        write(tmp_path / "run")
    assert str(caught.value).startswith(f"{tmp_path / 'run' / name} cannot be written: File too large. {REMEDY}")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
