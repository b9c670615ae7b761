"""Everything that the first step of a training needs: data, model, batches, and the memory that one batch takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainingArguments, set_seed

from blip2cap.models.base import dtype_name
from blip2cap.options import DecodeOptions, ModelOptions
from blip2cap.train.data.check import check
from blip2cap.train.data.collate import Collator, Stage1Collator, make_collator
from blip2cap.train.data.dataset import Sample, TrainDataset
from blip2cap.train.data.example import Data
from blip2cap.train.data.read import read_data
from blip2cap.train.data.reasons import WARNINGS
from blip2cap.train.data.render import render
from blip2cap.train.data.report import Report, usable
from blip2cap.train.memory import Memory, gigabytes, measure_batch
from blip2cap.train.model.base import Base, load_base
from blip2cap.train.model.trainee import Trainee
from blip2cap.train.options.data import DataOptions
from blip2cap.train.options.loop import LoopOptions
from blip2cap.train.options.model import OptimOptions, TuneOptions
from blip2cap.train.plan import Plan, make_plan
from blip2cap.train.recipe_file import FOUND, RECIPE, read_recipe, table_of

_NOT_OF_TRAINING = ("dtype", "device", "quantize", "device-map")
"""Options of models that `train` does not have, or has in the loop."""
_DIGEST = "examples_sha256"
_NUM_SHOWN = 3
"""Number of examples that are shown as the model sees them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJob:
    """Everything that defines a training."""

    task: str
    """caption, vqa, stage1 or stage2."""
    out: Path
    """Folder for checkpoints, reports and the finished model."""
    model: ModelOptions
    data: DataOptions
    tune: TuneOptions
    optim: OptimOptions
    loop: LoopOptions

    def recipe(self) -> dict[str, Any]:
        """Return the options as a recipe."""
        model = table_of(self.model, self.tune)
        return {
            "task": self.task,
            "data": table_of(self.data),
            "model": {name: value for name, value in model.items() if name not in _NOT_OF_TRAINING},
            "optim": table_of(self.optim),
            "loop": table_of(self.loop),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A training before its first step."""

    base: Base
    trainee: Trainee
    """On the device that it trains on."""
    collate: Collator | Stage1Collator
    train: TrainDataset
    val: TrainDataset | None
    plan: Plan
    memory: Memory
    recipe: dict[str, Any]
    """The options, and what they stood for."""

    @property
    def num_trainable(self) -> int:
        """Number of values that train."""
        return sum(each.numel() for each in self.trainee.trainable().values())

    @property
    def num_parameters(self) -> int:
        """Number of values of the model."""
        return sum(each.numel() for each in self.trainee.parameters())


def prepare(job: TrainJob, arguments: TrainingArguments, *, dtype: torch.dtype, say: Callable[[str], None]) -> Prepared:
    """Read data and model, say what they are, and compute a batch. Raises Blip2CapError."""
    data = read_data(job.data, cast(Any, job.task))
    for line in (*data.train.columns, *(data.val.columns if data.val else ())):
        say(line)
    set_seed(job.loop.seed)
    base = load_base(job.model, stage=job.task, tune=job.tune, seed=job.loop.seed, say=say)
    collate = make_collator(base, job.data)
    data = _checked(data, job, arguments, collate, say)
    trainee = Trainee(base, stage=job.task, tune=job.tune, seed=job.loop.seed)
    if dtype != torch.float32:
        trainee.round_frozen(
            dtype, lambda: load_base(job.model, stage=job.task, tune=job.tune, seed=job.loop.seed).model
        )
    trainee.to(arguments.device)
    train = TrainDataset(data.train, base.image_size, job.loop.seed)
    val = TrainDataset(data.val, base.image_size, shuffle=False) if data.val else None
    found = {
        "examples": len(data.train.examples),
        _DIGEST: _digest(data),
        "model_commit": base.checkpoint.commit,
        "precision": dtype_name(dtype),
        "processes": arguments.world_size,
    }
    prepared = assemble(
        job,
        arguments,
        dtype,
        say,
        trainee=trainee,
        collate=collate,
        train=train,
        val=val,
        found=found,
        largest=_largest,
    )
    batch = collate([train[position] for position in range(min(_NUM_SHOWN, len(train)))])
    for row in range(len(batch["input_ids"])):
        say(f"Example {row + 1}: {render(base, batch, row)}")
    return prepared


def assemble(
    job: TrainJob,
    arguments: TrainingArguments,
    dtype: torch.dtype,
    say: Callable[[str], None],
    *,
    trainee: Trainee,
    collate: Any,
    train: Any,
    val: Any,
    found: Mapping[str, Any],
    largest: Callable[[Any, int], list[Any]] | None = None,
) -> Prepared:
    """Plan the steps, measure a batch, and say the counts; `found` is what the options stood for, for recipe.toml.

    `largest` returns a number of samples, those with the longest texts; if left out, all are as long.
    """
    plan = make_plan(job.loop, num_examples=len(train), num_processes=arguments.world_size)
    first = range(plan.device_batch)
    batch = collate(largest(train, len(first)) if largest else [train[position] for position in first])
    part = f"--model {job.model.name}: {plan.device_batch} examples at once"
    prepared = Prepared(
        base=trainee.base,
        trainee=trainee,
        collate=collate,
        train=train,
        val=val,
        plan=plan,
        memory=measure_batch(trainee, batch, dtype=dtype, part=part, num_processes=arguments.world_size),
        recipe={**job.recipe(), FOUND: found},
    )
    say(
        f"{len(train)} examples{f' and {len(val)} for validation' if val else ', none for validation'}; "
        f"{plan.num_steps} steps of {job.loop.batch_size}, {plan.steps_per_epoch} in an epoch; "
        f"{prepared.num_trainable:,} of {prepared.num_parameters:,} parameters train "
        f"({100 * prepared.num_trainable / prepared.num_parameters:.1f} %); "
        f"about {gigabytes(prepared.memory.estimate)} of memory"
    )
    return prepared


def _checked(
    data: Data,
    job: TrainJob,
    arguments: TrainingArguments,
    collate: Collator | Stage1Collator,
    say: Callable[[str], None],
) -> Data:
    """Read all images and texts once, in one of the processes; not again when the training is resumed.

    Raises InputError for bad examples.
    """
    reports: list[Report | None] = [None]
    if arguments.process_index == 0 and _checked_before(job.out) != _digest(data):
        reports = [check(data, DecodeOptions(), collate=collate)]
    if arguments.world_size > 1:
        torch.distributed.broadcast_object_list(reports, src=0)
    report = reports[0]
    if report is None:
        return data
    kept = usable(data, report, skip_bad=job.data.skip_bad)
    if report.num_errors:
        say(f"{report.num_bad} bad examples are left out: {report.errors()}.")
    if report.num_warnings:
        counts = ", ".join(f"{count} {reason}" for reason, count in report.by_reason.items() if reason in WARNINGS)
        say(f"{report.num_warnings} warnings: {counts}. To see them: blip2cap check-data.")
    return kept


def _checked_before(folder: Path) -> str | None:
    """Return the hash of the examples that the training in a folder began with, if there is one."""
    path = folder / RECIPE
    return read_recipe(path).get(FOUND, {}).get(_DIGEST) if path.is_file() else None


def _largest(data: TrainDataset, number: int) -> list[Sample]:
    """Return samples with the longest texts: their batch is the largest that the training meets."""
    examples = data.data.examples
    lengths = [len(each.question or "") + max(map(len, each.texts)) for each in examples]
    indices = sorted(range(len(examples)), key=lambda index: -lengths[index])[:number]
    plain = TrainDataset(data.data, data.image_size, shuffle=False)
    return [plain[index] for index in indices]


def _digest(data: Data) -> str:
    """Return a hash of all examples: names, questions and texts, but not the images."""
    digest = hashlib.sha256()
    for part in (data.train, data.val):
        for each in part.examples if part else ():
            digest.update(
                repr((each.name, each.question, each.texts, each.weights)).encode("utf-8", "backslashreplace")
            )
        digest.update(b"\0")
    return digest.hexdigest()[:16]
