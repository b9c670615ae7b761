"""Steps and batches of a training, and the arguments of transformers' Trainer that stand for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments

from blip2cap.errors import UsageError
from blip2cap.train.options.loop import LoopOptions

_CHECKPOINT_EVERY = 1_000
"""Most steps that a crash costs, unless --checkpoint-every is given."""
_CHECK_S = 24 * 3600
"""Longest time that the other processes wait while the first one reads all images, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Numbers of steps and examples."""

    num_steps: int
    steps_per_epoch: int
    evaluate_every: int
    checkpoint_every: int
    device_batch: int
    """Number of examples that one process computes at once."""


def make_plan(loop: LoopOptions, *, num_examples: int, num_processes: int) -> Plan:
    """Return the steps of a training. Raises UsageError if the batches cannot be filled or divided."""
    steps_per_epoch = num_examples // loop.batch_size
    if not steps_per_epoch:
        raise UsageError(
            f"--batch-size {loop.batch_size}: there are only {num_examples} examples. Use at most {num_examples}."
        )
    parts = loop.accumulate * num_processes
    if loop.batch_size % parts:
        raise UsageError(
            f"--batch-size {loop.batch_size} cannot be divided into {num_processes} processes with --accumulate "
            f"{loop.accumulate} parts each. Use a multiple of {parts}."
        )
    return Plan(
        num_steps=loop.max_steps or loop.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        evaluate_every=loop.evaluate_every or steps_per_epoch,
        checkpoint_every=loop.checkpoint_every or min(steps_per_epoch, _CHECKPOINT_EVERY),
        device_batch=loop.batch_size // parts,
    )


def choose_dtype(loop: LoopOptions) -> torch.dtype:
    """Return the type of matrix products. Raises UsageError for one that the device does not have."""
    on_gpu = loop.device != "cpu" and torch.cuda.is_available()
    if loop.device == "cuda" and not on_gpu:
        raise UsageError("--device cuda: torch finds no GPU. Use --device cpu, or install torch with CUDA.")
    if loop.dtype == "auto":
        if not on_gpu:
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if loop.dtype == "float16" and not on_gpu:
        raise UsageError("--dtype float16: needs a GPU in training. Use float32 or bfloat16.")
    dtype: torch.dtype = getattr(torch, loop.dtype)
    return dtype


def start_processes(loop: LoopOptions, out: Path, *, dtype: torch.dtype, clip_norm: float) -> TrainingArguments:
    """Return arguments without the plan, which needs the number of processes; join them if a launcher started several.

    Of several GPUs in one process only the first is used.
    """
    use_cpu = loop.device == "cpu" or not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(out),
        use_cpu=use_cpu,
        ddp_timeout=_CHECK_S,
        ddp_find_unused_parameters=False,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        seed=loop.seed,
        logging_steps=loop.log_every,
        max_grad_norm=clip_norm,
        report_to=loop.report_to or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        dataloader_num_workers=loop.num_workers,
        dataloader_pin_memory=not use_cpu,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else Trainer splits batches over all GPUs in threads, which is slow
    return arguments


def complete(arguments: TrainingArguments, plan: Plan, loop: LoopOptions, *, evaluates: bool) -> None:
    """Add the plan to the arguments."""
    arguments.per_device_train_batch_size = arguments.per_device_eval_batch_size = plan.device_batch
    arguments.gradient_accumulation_steps = loop.accumulate
    arguments.max_steps = plan.num_steps
    arguments.set_save(strategy="steps", steps=plan.checkpoint_every)
    if evaluates:
        arguments.set_evaluate(strategy="steps", steps=plan.evaluate_every, batch_size=plan.device_batch, delay=0)
        arguments.metric_for_best_model, arguments.greater_is_better = loop.best_key, loop.best_by != "loss"
