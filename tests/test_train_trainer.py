"""The loop: an exact resume, checkpoints, losses over parts of batches and over processes."""

import json
import os
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blip2cap.errors import ModelError, OutputRefusedError
from blip2cap.train.checkpoints import Checkpoints
from blip2cap.train.logs import RowFile
from blip2cap.train.options.loop import LoopOptions
from blip2cap.train.plan import complete, make_plan, start_processes
from blip2cap.train.reports import Reporter, num_without_gain
from blip2cap.train.trainer import WEIGHTS, BlipTrainer, load_trainable
from tests.trainee_fakes import FakeData, FakeTrainee, fake_collate

LOOP = LoopOptions(epochs=4, batch_size=4, num_workers=0, log_every=3, checkpoint_every=2, device="cpu")
"""20 steps of 4 of 22 examples: 5 in an epoch, with a rest."""


@dataclass
class Heard:
    """A listener that remembers."""

    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def begin(self, num_steps: int, done: int) -> None:
        self.lines.append(f"begin {num_steps} {done}")

    def step(self, done: int) -> None:
        pass

    def end(self) -> None:
        pass


def fit(
    folder: Path,
    loop: LoopOptions = LOOP,
    *,
    dropout: float = 0.3,
    rate: float = 1e-2,
    val: FakeData | None = None,
    stop_after: int | None = None,
    at_step: Callable[[], object] = lambda: None,
    asked_to_stop: Callable[[], bool] = lambda: False,
    heard: Heard | None = None,
    score: Callable[[], dict[str, float]] | None = None,
) -> FakeTrainee:
    """Train the fake in a folder, or resume; `at_step` is called after each step."""
    folder.mkdir(exist_ok=True)
    trainee, data, steps = FakeTrainee(dropout=dropout), FakeData(), 0
    arguments = start_processes(loop, folder, dtype=torch.float32, clip_norm=1.0)
    plan = make_plan(loop, num_examples=len(data), num_processes=arguments.world_size)
    complete(arguments, plan, loop, evaluates=val is not None)
    optimiser = torch.optim.AdamW(trainee.trainable().values(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / plan.num_steps)

    def stopped() -> bool:
        nonlocal steps
        steps += 1
        at_step()
        return steps == stop_after or asked_to_stop()

    checkpoints = Checkpoints(folder / "checkpoints")
    reporter = Reporter(
        heard or Heard(),
        metrics=RowFile(folder / "metrics.jsonl"),
        samples=RowFile(folder / "samples.jsonl"),
        sample=list,
        steps_per_epoch=plan.steps_per_epoch,
        loop=loop,
        stopped=stopped,
    )
    trainer = BlipTrainer(
        trainee,
        arguments,
        collate=fake_collate,
        train=data,
        val=val,
        optimizers=(optimiser, schedule),
        checkpoints=checkpoints,
        callbacks=[reporter],
        contrasts=False,
        score=score,
    )
    done = checkpoints.steps()
    if done and arguments.process_index == 0:
        reporter.metrics.truncate(done[-1])
    trainer.train(resume_from_checkpoint=str(checkpoints.path(done[-1])) if done else None)
    return trainee


def difference(one: FakeTrainee, other: FakeTrainee) -> float:
    """Return the largest difference of two networks."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def rows(folder: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.jsonl without times and memory."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("step_s", "max_memory_mb")} for row in found]


def start_child(function: Callable[[], object]) -> int:
    """Run a function in a process of its own, which leads a group; return its id."""
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def in_child(function: Callable[[], object]) -> int:
    """Run a function in a process of its own; return its exit status as `waitpid` does."""
    return os.waitpid(start_child(function), 0)[1]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return fit(folder, val=FakeData(7)), folder


@pytest.mark.parametrize(
    "stop_after", [pytest.param(3, marks=pytest.mark.long), 5, pytest.param(12, marks=pytest.mark.long)]
)
def test_a_stopped_training_resumes_bit_for_bit(tmp_path, unbroken, stop_after):
    stopped = fit(tmp_path, val=FakeData(7), stop_after=stop_after)
    assert difference(stopped, unbroken[0]) > 0
    resumed = fit(tmp_path, val=FakeData(7))
    assert difference(resumed, unbroken[0]) == 0.0


@pytest.mark.long
def test_a_killed_training_resumes_bit_for_bit_with_the_same_rows(tmp_path, unbroken):
    for kill_after in (1, 6, 4):  # counted from the last checkpoint: in an epoch, between two, in the next
        num_steps = iter(range(1, 100))

        def kill(num_steps=num_steps, kill_after=kill_after):
            if next(num_steps) == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        assert os.WTERMSIG(in_child(partial(fit, tmp_path, val=FakeData(7), at_step=kill))) == signal.SIGKILL
    resumed = fit(tmp_path, val=FakeData(7))
    assert difference(resumed, unbroken[0]) == 0.0
    assert rows(tmp_path) == rows(unbroken[1])


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, unbroken, monkeypatch):
    def killed_at_the_second_checkpoint(self, folder):
        if self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    def train():
        monkeypatch.setattr(BlipTrainer, "_save_scaler", killed_at_the_second_checkpoint)
        fit(tmp_path, val=FakeData(7))

    assert os.WTERMSIG(in_child(train)) == signal.SIGKILL
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2]
    assert (tmp_path / "checkpoints/.step-000004.tmp").is_dir()
    assert difference(fit(tmp_path, val=FakeData(7)), unbroken[0]) == 0.0
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000020"]


def test_parts_of_a_batch_add_up_to_it(tmp_path):
    whole = fit(tmp_path / "1", dropout=0.0)
    parts = fit(tmp_path / "2", replace(LOOP, accumulate=2), dropout=0.0)
    assert difference(whole, FakeTrainee()) > 0
    assert difference(whole, parts) < 1e-6
    assert [row["loss"] for row in rows(tmp_path / "1")] == pytest.approx([row["loss"] for row in rows(tmp_path / "2")])


@pytest.mark.long
def test_two_processes_equal_one(tmp_path, monkeypatch):
    one = fit(tmp_path / "one", dropout=0.0, val=FakeData(7))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")

    def train(rank, stop_after):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        heard = Heard()
        settings: dict[str, Any] = {"stop_after": stop_after, "heard": heard}
        if rank == 0:  # the other process is told
            settings["score"] = lambda: {"cider": 0.5}
        else:
            settings["score"] = pytest.fail
        trainee = fit(tmp_path / "two", dropout=0.0, val=FakeData(7), **settings)
        assert heard.lines[0].startswith("begin 20 ")  # each process notes signals from here on
        torch.save(trainee.state_dict(), tmp_path / f"{rank}.pt")

    for stop_after in (7, None):  # stopped within the second epoch, then resumed
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        if (other := os.fork()) == 0:
            try:
                train(1, None)
                os._exit(0)
            finally:
                os._exit(1)
        assert in_child(partial(train, 0, stop_after)) == 0
        assert os.waitpid(other, 0)[1] == 0
    for rank in range(2):
        two = FakeTrainee()
        two.load_state_dict(torch.load(tmp_path / f"{rank}.pt", weights_only=True))
        assert difference(one, two) < 1e-6
    losses = [[row["val_loss"] for row in rows(tmp_path / name) if "val_loss" in row] for name in ("one", "two")]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)


def test_the_last_checkpoint_and_the_best_are_kept(tmp_path):
    trainee = fit(tmp_path, rate=0.3, val=FakeData(7, seed=77))
    losses = {row["step"]: row["val_loss"] for row in rows(tmp_path) if "val_loss" in row}
    best = min(losses, key=lambda step: losses[step])
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert best < 20
    assert checkpoints.steps() == [best, 20]
    again = FakeTrainee()
    load_trainable(again, checkpoints.path(20) / WEIGHTS)
    assert difference(again, trainee) == 0.0


def test_a_score_of_texts_may_choose_the_best_checkpoint_and_the_end(tmp_path):
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.4])
    heard, loop = Heard(), replace(LOOP, epochs=9, best_by="cider", early_stop=2)
    fit(tmp_path, loop, val=FakeData(7), heard=heard, score=lambda: {"cider": next(scores)})
    assert [row["val_cider"] for row in rows(tmp_path) if "val_cider" in row] == [0.1, 0.9, 0.2, 0.3]
    assert Checkpoints(tmp_path / "checkpoints").steps() == [10, 20]
    assert heard.lines[-1] == "Early stop: 2 evaluations without a higher cider."


def test_a_checkpoint_holds_only_what_trains(tmp_path):
    fit(tmp_path)
    assert sorted(load_file(tmp_path / "checkpoints/step-000020" / WEIGHTS)) == ["head.bias", "head.weight"]


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    fit(tmp_path)
    trainee = FakeTrainee()
    trainee.frozen.requires_grad_(True)
    with pytest.raises(OutputRefusedError, match=r"2 parameters are in one of them only, such as frozen.bias"):
        load_trainable(trainee, tmp_path / "checkpoints/step-000020" / WEIGHTS)


def test_early_stop_ends_after_evaluations_without_gain(tmp_path):
    heard = Heard()
    fit(tmp_path, replace(LOOP, epochs=40, early_stop=2), rate=0.3, val=FakeData(7, seed=77), heard=heard)
    evaluated = [row["val_loss"] for row in rows(tmp_path) if "val_loss" in row]
    assert len(evaluated) < 40
    assert min(evaluated) == evaluated[-3]
    assert heard.lines[-1] == "Early stop: 2 evaluations without a lower loss."


def test_evaluations_without_gain_are_counted_from_the_first_of_the_lowest():
    def history(*losses: float) -> list[dict[str, float]]:
        return [{"loss": 1.0}, *({"eval_loss": loss} for loss in losses)]

    assert num_without_gain(history(), LOOP) == 0
    assert num_without_gain(history(2.0, 1.0), LOOP) == 0
    assert num_without_gain(history(1.0, 2.0, 1.0), LOOP) == 2
    scores = [{"eval_loss": 0.0, "eval_exact_match": score} for score in (0.5, 0.9, 0.9, 0.1)]
    assert num_without_gain(scores, replace(LOOP, best_by="exact-match")) == 2


def test_a_loss_that_is_no_number_ends_the_training_before_a_checkpoint(tmp_path):
    with pytest.raises(ModelError, match=r"the loss is nan at step 2: the training has diverged. Lower learning_rate"):
        fit(tmp_path, rate=float("inf"))
    assert not (tmp_path / "checkpoints").exists()


def test_log_lines_are_in_the_terms_of_lavis(tmp_path):
    heard = Heard()
    fit(tmp_path, heard=heard)
    assert heard.lines[0] == "begin 20 0"
    assert heard.lines[2].startswith("Train: data epoch: [0]  [3/5]  eta: 0:00:0")
    assert "  lr: 0.00900000  loss: 2." in heard.lines[2]
    assert "  loss_lm: 2." in heard.lines[2]
