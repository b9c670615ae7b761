"""Reports a training while it runs: log lines, rows, samples; and decides when it stops and saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from blip2cap.train.logs import RowFile, evaluation_line, log_line
from blip2cap.train.memory import peak_bytes
from blip2cap.train.options.loop import LoopOptions
from blip2cap.train.trainer import Clock


class Listener(Protocol):
    """Receives the lines and the progress of a training."""

    def say(self, line: str) -> None:
        """Receive a line; texts in it may hold any character."""

    def begin(self, num_steps: int, done: int) -> None:
        """Called before the first step of this process; from here on, a stop ends with a checkpoint."""

    def step(self, done: int) -> None:
        """Called after each step."""

    def end(self) -> None:
        """Called after the last step, if `begin` was called."""


def num_without_gain(history: Sequence[Mapping[str, Any]], loop: LoopOptions) -> int:
    """Return the number of evaluations since the best one, by `loop.best_by`, given the log of a training."""
    sign = 1 if loop.best_by == "loss" else -1
    values = [sign * row[loop.best_key] for row in history if loop.best_key in row]
    return len(values) - 1 - values.index(min(values)) if values else 0


class Reporter(TrainerCallback):
    """The callback of a training; only the main process says and writes, but any process can be told to stop."""

    def __init__(
        self,
        listener: Listener,
        *,
        metrics: RowFile,
        samples: RowFile,
        sample: Callable[[], list[dict[str, str]]],
        steps_per_epoch: int,
        loop: LoopOptions,
        stopped: Callable[[], bool],
    ) -> None:
        """`sample` returns what the model says about some images; `stopped` returns True once the user has stopped."""
        self.listener, self.metrics, self.samples, self.sample = listener, metrics, samples, sample
        self.steps_per_epoch, self.loop, self.stopped = steps_per_epoch, loop, stopped
        self._clock, self._whole = Clock(), Clock()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the display."""
        self._clock.start(state.global_step)
        self._whole.start(state.global_step)
        self.listener.begin(state.max_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save at evaluations, to keep the best; log at checkpoints, so that a resumed log has the same rows."""
        if self._anyone_stopped(args):
            control.should_save = control.should_training_stop = True
        control.should_save |= control.should_evaluate
        control.should_log |= control.should_save
        self.listener.step(state.global_step)

    def _anyone_stopped(self, args: TrainingArguments) -> bool:
        """Return True in all processes at the same step, once a user has stopped one of them."""
        if args.world_size == 1:
            return self.stopped()
        flag = torch.tensor(float(self.stopped()), device=args.device)
        torch.distributed.all_reduce(flag)
        return bool(flag.item())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write a row of losses, and say it."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        step = state.global_step
        row = {
            "step": step,
            "epoch": round(state.epoch, 4),
            "lr": logs["learning_rate"],
            **{name: round(value, 6) for name, value in logs.items() if name.startswith("loss")},
            "grad_norm": round(logs.get("grad_norm", 0.0), 6),
            "step_s": round(self._clock.seconds_per_step(step), 4),
            "max_memory_mb": round(peak_bytes(args.device) / 1e6, 1),
        }
        self.metrics.add(row)
        eta_s = self._whole.mean(step) * (state.max_steps - step)
        epoch, in_epoch = divmod(step - 1, self.steps_per_epoch)
        self.listener.say(log_line(row, epoch=epoch, step=in_epoch + 1, steps=self.steps_per_epoch, eta_s=eta_s))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write a row of metrics and samples, and say them."""
        waits = num_without_gain(state.log_history, self.loop)
        is_over = self.loop.early_stop is not None and waits >= self.loop.early_stop
        control.should_training_stop |= is_over
        if metrics and state.is_world_process_zero:
            values = {
                name.replace("eval_", "val_", 1): round(value, 6)
                for name, value in metrics.items()
                if name.startswith("eval_")
            }
            row = {"step": state.global_step, **values}
            self.metrics.add(row)
            self.listener.say(evaluation_line(row, best=waits == 0))
            for found in self.sample():
                self.samples.add({"step": state.global_step, **found})
                self.listener.say("  " + ", ".join(f"{name}: {value}" for name, value in found.items()))
            if is_over:
                better = "lower loss" if self.loop.best_by == "loss" else f"higher {self.loop.best_by}"
                self.listener.say(f"Early stop: {waits} evaluations without a {better}.")
        self._clock.start(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the display."""
        self.listener.end()
