"""Runs a training: its steps, the finished model, the plot.

Started again with the same options, it continues at its last checkpoint, as if it had not been stopped.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerState, TrainingArguments

from blip2cap.errors import InputError, UsageError
from blip2cap.train.model.schedule import make_schedule
from blip2cap.train.plan import choose_dtype, complete, start_processes
from blip2cap.train.plot import check_matplotlib, plot_losses
from blip2cap.train.prepare import Prepared, TrainJob, prepare
from blip2cap.train.reports import Listener, Reporter, num_without_gain
from blip2cap.train.run_folder import RunFolder
from blip2cap.train.sampling import TASKS, Sampler
from blip2cap.train.trainer import STATE, WEIGHTS, BlipTrainer, load_trainable

_REPORTERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""Packages that --report-to needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOutcome:
    """Result of a training."""

    out: Path
    num_steps: int
    """Number of steps that are done."""
    total_steps: int
    seconds: float
    """Time of this process, with data and model."""
    finished: bool
    """False: stopped; the same command continues."""
    chosen_step: int
    """Step whose weights the finished model has: the best on the validation set, else the last."""
    best_by: str
    """Metric that chose it."""
    best_value: float | None
    """Its value on the validation set; None without one."""


def dry_run(job: TrainJob, *, listener: Listener) -> Prepared:
    """Read data and model and compute one batch; write nothing."""
    return _prepare(job, RunFolder(job.out), listener, prepare)[0]


def train(
    job: TrainJob, *, listener: Listener, stopped: Callable[[], bool], make: Callable[..., Prepared] = prepare
) -> TrainOutcome | None:
    """Train, or resume; `stopped` is asked after each step, and a stop ends with a checkpoint.

    `make` prepares model and data; those that are drawn have their own.

    Returns None for a training that is finished already. Raises Blip2CapError, whose message says what to do.
    """
    started, folder = time.monotonic(), RunFolder(job.out)
    folder.check(job.recipe())
    if folder.is_finished:
        return None
    with contextlib.ExitStack() as stack:
        # 1. data and model
        prepared, arguments = _prepare(job, folder, listener, make)
        is_main = arguments.process_index == 0
        if is_main:
            stack.enter_context(folder.locked())
            folder.begin(prepared.recipe)
        arguments.distributed_state.wait_for_everyone()

        # 2. steps
        trainer = _trainer(job, prepared, arguments, folder, listener, stopped)
        done = folder.checkpoints.steps()
        if done:
            listener.say(f"Resuming {folder.path} after step {done[-1]}.")
        state = _state(folder, done[-1]) if done else trainer.state
        if is_main:
            for rows in (folder.metrics, folder.samples):
                rows.truncate(state.global_step)
        if not _is_complete(state, job, prepared):
            try:
                trainer.train(resume_from_checkpoint=str(folder.checkpoints.path(done[-1])) if done else None)
            except InputError as error:  # torch puts the traceback of a data loader's process before the message
                raise InputError(error.message.rpartition(f"{InputError.__name__}: ")[2].strip()) from error
            state = trainer.state

        # 3. the finished model
        finished = _is_complete(state, job, prepared)
        chosen = state.best_global_step or state.global_step
        if finished and is_main:
            load_trainable(prepared.trainee, folder.checkpoints.path(chosen) / WEIGHTS)
            plot_losses(folder.metrics.rows(), folder.path, title=f"{job.task}: {job.model.name}")
            prepared.trainee.eval()
            prepared.trainee.save(folder.path)
        arguments.distributed_state.wait_for_everyone()
    return TrainOutcome(
        out=job.out,
        num_steps=state.global_step,
        total_steps=prepared.plan.num_steps,
        seconds=time.monotonic() - started,
        finished=finished,
        chosen_step=chosen,
        best_by=job.loop.best_by,
        best_value=state.best_metric,
    )


def _prepare(
    job: TrainJob, folder: RunFolder, listener: Listener, make: Callable[..., Prepared]
) -> tuple[Prepared, TrainingArguments]:
    """Check everything that can be checked before work begins, then do what comes before the first step."""
    check_matplotlib()
    if job.loop.report_to and importlib.util.find_spec(_REPORTERS[job.loop.report_to]) is None:
        raise UsageError(
            f"--report-to {job.loop.report_to}: not installed. Install it: pip install {job.loop.report_to}."
        )
    if job.loop.early_stop is not None and not job.data.val:
        raise UsageError("--early-stop has no effect without --val. Add it, or leave --early-stop out.")
    _check_metric(job)
    folder.check(job.recipe())
    dtype = choose_dtype(job.loop)
    arguments = start_processes(job.loop, job.out, dtype=dtype, clip_norm=job.optim.clip_norm)
    prepared = make(job, arguments, dtype=dtype, say=listener.say)
    complete(arguments, prepared.plan, job.loop, evaluates=prepared.val is not None)
    return prepared, arguments


def _check_metric(job: TrainJob) -> None:
    """Raise UsageError for a metric that the training cannot have."""
    best_by = job.loop.best_by
    if best_by == "loss":
        return
    if job.task not in TASKS[best_by]:
        raise UsageError(f"--best-by {best_by}: is for {' and '.join(TASKS[best_by])}, not for {job.task}.")
    if not job.data.val:
        raise UsageError(f"--best-by {best_by} has no effect without --val. Add it, or leave --best-by out.")


def _trainer(
    job: TrainJob,
    prepared: Prepared,
    arguments: TrainingArguments,
    folder: RunFolder,
    listener: Listener,
    stopped: Callable[[], bool],
) -> BlipTrainer:
    optim, plan = job.optim, prepared.plan
    optimiser = torch.optim.AdamW(prepared.trainee.groups(optim), betas=(0.9, optim.beta2), fused=True)
    schedule = make_schedule(optimiser, optim, num_steps=plan.num_steps, steps_per_epoch=plan.steps_per_epoch)
    sampler = Sampler(prepared, job)
    reporter = Reporter(
        listener,
        metrics=folder.metrics,
        samples=folder.samples,
        sample=sampler.sample,
        steps_per_epoch=plan.steps_per_epoch,
        loop=job.loop,
        stopped=stopped,
    )
    return BlipTrainer(
        prepared.trainee,
        arguments,
        collate=prepared.collate,
        train=prepared.train,
        val=prepared.val,
        optimizers=(optimiser, schedule),
        checkpoints=folder.checkpoints,
        callbacks=[reporter],
        contrasts=job.task == "stage1",
        score=None if job.loop.best_by == "loss" else sampler.scores,
    )


def _state(folder: RunFolder, step: int) -> TrainerState:
    return TrainerState.load_from_json(str(folder.checkpoints.path(step) / STATE))


def _is_complete(state: TrainerState, job: TrainJob, prepared: Prepared) -> bool:
    """Return True after the last step, or an early stop."""
    patience = job.loop.early_stop
    waited = patience is not None and num_without_gain(state.log_history, job.loop) >= patience
    return state.global_step >= prepared.plan.num_steps or waited
