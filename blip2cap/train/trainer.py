"""The loop of transformers' Trainer, with losses in parts, checkpoints of what trains only, and an exact resume."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from blip2cap.errors import ModelError, OutputRefusedError
from blip2cap.train.checkpoints import Checkpoints
from blip2cap.train.data.workers import WorkerContext

Batch = dict[str, torch.Tensor]
Losses = dict[str, torch.Tensor]
WEIGHTS, STATE = "trainable.safetensors", "trainer_state.json"
"""Files of a checkpoint, besides those of optimiser, schedule and random numbers, which Trainer names."""


class Trainable(Protocol):
    """A module that returns its losses: "loss" and the parts that it is the sum of."""

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Return the parameters that train, by name."""


class InOrder(Sampler[int]):
    """The positions of a data set that shuffles by itself, in whole batches: what is left over is not in this epoch."""

    def __init__(self, size: int, batch_size: int) -> None:
        self.size = size // batch_size * batch_size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))


class Averages:
    """Means of the losses since the last log line, weighted by their numbers of examples or tokens."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, losses: Losses, weight: torch.Tensor | float = 1.0) -> None:
        """Add the losses of a batch."""
        for name, loss in losses.items():
            pair = torch.stack([loss.detach().double() * weight, torch.ones_like(loss, dtype=torch.double) * weight])
            self._sums[name] = self._sums.get(name, 0) + pair

    def take(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return the means over all processes and start again. `reduce` sums a tensor over them."""
        sums, self._sums = self._sums, {}
        return {name: (total / weight).item() for name, (total, weight) in ((n, reduce(p)) for n, p in sums.items())}


class BlipTrainer(Trainer):
    """Trainer of a `Trainable`.

    Overrides: the loss, its evaluation, the order of the data, and the files of a checkpoint.
    """

    control: TrainerControl

    def __init__(
        self,
        trainee: nn.Module,
        arguments: TrainingArguments,
        *,
        collate: Callable[[list[Any]], Batch],
        train: Dataset[Any],
        val: Dataset[Any] | None,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler],
        checkpoints: Checkpoints,
        callbacks: list[TrainerCallback],
        contrasts: bool,
        score: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """`contrasts`: a loss compares the examples of all processes, which need equal batches.

        `score` returns more metrics of an evaluation; the main process calls it.
        """
        super().__init__(
            model=trainee,
            args=arguments,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=val,
            optimizers=optimizers,
            callbacks=[SetEpoch(train), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        # Losses of texts are means over all tokens of a step, whatever process or part of the batch they are in.
        self.model_accepts_loss_kwargs = True
        self.checkpoints, self.contrasts, self.score = checkpoints, contrasts, score
        self._averages = Averages()

    # 1. data

    def _get_train_sampler(self, train_dataset: Any = None) -> InOrder:
        arguments = self.args
        step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        return InOrder(len(self.train_dataset), step)

    def _loader(self, data: Any, **settings: Any) -> DataLoader[Any]:
        num_workers = self.args.dataloader_num_workers
        own_context = num_workers and sys.platform == "linux"
        return DataLoader(
            data,
            collate_fn=self.data_collator,
            num_workers=num_workers,
            multiprocessing_context=WorkerContext() if own_context else None,
            pin_memory=self.args.dataloader_pin_memory,
            **settings,
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of an epoch for this process."""
        settings = {"batch_size": self.args.train_batch_size, "sampler": self._get_train_sampler()}
        return cast(DataLoader[Any], self.accelerator.prepare(self._loader(self.train_dataset, **settings)))

    # 2. losses

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a part of the batch, scaled so that the gradients of all parts and processes add up."""
        losses: Losses = model(**inputs)
        if num_items_in_batch is None:
            scale: torch.Tensor | float = 1 / self.current_gradient_accumulation_steps
            self._averages.add(losses)
        else:
            num_items = (inputs["labels"] != -100).sum()
            # DistributedDataParallel divides the sum of the gradients by the number of processes.
            scale = num_items / num_items_in_batch * self.args.world_size
            self._averages.add(losses, num_items)
        return losses["loss"] * scale

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean losses on the validation set, over tokens of texts, in stage 1 over pairs, and the scores."""
        averages, model = Averages(), self.model
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        model.eval()
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(self.args.seed)  # hard negatives of stage 1 are drawn: the same in every evaluation
            for batch in self._val_batches():
                inputs = self._prepare_inputs(batch)
                weight = (inputs["labels"] != -100).sum() if "labels" in inputs else len(inputs["input_ids"])
                averages.add(model(**inputs), weight)
            values = averages.take(self._sum) | self._scores()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _scores(self) -> dict[str, float]:
        if self.score is None:
            return {}
        found: list[Any] = [self.score() if self.args.process_index == 0 else None]
        if self.args.world_size > 1:
            torch.distributed.broadcast_object_list(found, src=0)
        scores: dict[str, float] = found[0]
        return scores

    def _val_batches(self) -> Iterable[Batch]:
        """Return batches that have each example once; for a contrast some may come twice, to fill the last batch."""
        arguments, data = self.args, self.eval_dataset
        if self.contrasts or len(data) < arguments.world_size:
            batches: Iterable[Batch] = self.accelerator.prepare(
                self._loader(data, batch_size=arguments.eval_batch_size)
            )
            return batches
        own = Subset(data, range(arguments.process_index, len(data), arguments.world_size))
        return self._loader(own, batch_size=arguments.eval_batch_size)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the losses in parts. Raises ModelError if the loss is not a number any more."""
        if "loss" in logs:
            logs |= self._averages.take(self._sum)
            if not math.isfinite(logs["loss"]):
                raise ModelError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}: the training has diverged. Lower "
                    "--learning-rate, raise --warmup-steps, or use --dtype bfloat16 or float32."
                )
        super().log(logs, start_time)

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = self.accelerator.reduce(value, reduction="sum")
        return summed

    # 3. checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        with self.checkpoints.writing(
            step, writer=self.args.should_save, wait=self.accelerator.wait_for_everyone
        ) as folder:
            if self.args.should_save:
                save_trainable(self.model, folder / WEIGHTS)
                self.state.save_to_json(str(folder / STATE))
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        if self.args.should_save:
            self.checkpoints.keep({step, self.state.best_global_step or step})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trainable(self.model, Path(resume_from_checkpoint) / WEIGHTS)


def save_trainable(trainee: Any, path: Path) -> None:
    """Write the parameters that train."""
    save_file({name: each.detach().cpu().contiguous() for name, each in trainee.trainable().items()}, path)


def load_trainable(trainee: Any, path: Path) -> None:
    """Load the parameters that train. Raises OutputRefusedError if the file has others."""
    stored, parameters = load_file(path), trainee.trainable()
    if stored.keys() != parameters.keys():
        other = sorted(stored.keys() ^ parameters.keys())
        raise OutputRefusedError(
            f"{path}: not a checkpoint of this training: {len(other)} parameters are in one of them only, such as "
            f"{other[0]}. Use another -o."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])


class SetEpoch(TrainerCallback):
    """Tells the data set its epoch. accelerate does too, but not if several processes resume within an epoch."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Set the epoch that begins, or is resumed."""
        self.data.set_epoch(int(state.epoch))


class Clock:
    """Mean seconds for each step, since the start or since the last reading."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, step: int) -> None:
        """Start at a step."""
        self._since, self._step = time.monotonic(), step

    def mean(self, step: int) -> float:
        """Return the mean time of the steps since the start."""
        return (time.monotonic() - self._since) / max(1, step - self._step)

    def seconds_per_step(self, step: int) -> float:
        """Return the mean time of the steps since the last call, and start again."""
        seconds = self.mean(step)
        self.start(step)
        return seconds
