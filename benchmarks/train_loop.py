"""A training with ours, or with transformers' Trainer and its classes as their documentation shows it.

    python -m benchmarks.train_loop --program ours --images ./imgs --model tiny --json
    python -m benchmarks.train_loop --program plain --images ./imgs --model tiny --json

One process for each, so that each has a peak of memory of its own. Both take the same images, texts, batches and
parameters; the first steps, `--warmup`, do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from blip2cap.bench.report import digits
from blip2cap.errors import UsageError
from blip2cap.models.blip2.random_weights import build, stand_in_tokenizer
from blip2cap.models.checkpoint import find
from blip2cap.options import ModelOptions
from blip2cap.train import run
from blip2cap.train.memory import peak_bytes, reset_peak
from blip2cap.train.options.data import DataOptions
from blip2cap.train.options.loop import LoopOptions
from blip2cap.train.options.model import OptimOptions, TuneOptions
from blip2cap.train.prepare import TrainJob

TEXTS = ("a red car", "two blue fish next to a red flower in the snow", "a white house in a field under the sun")
RATE = 1e-5


class Clock:
    """Wall and CPU time at the end of each step; also a listener of ours that shows nothing."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def say(self, line: str) -> None:
        """Show nothing."""

    def begin(self, num_steps: int, done: int) -> None:
        """Show nothing."""

    def step(self, done: int) -> None:
        """Note the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def end(self) -> None:
        """Show nothing."""

    def seconds(self, times: Sequence[float], warmup: int) -> float:
        """Return the median time of a step, without the first ones."""
        return median(after - before for before, after in zip(times[warmup:], times[warmup + 1 :], strict=False))


def main(argv: Sequence[str] | None = None) -> int:
    """Train for some steps, and print the time and the memory as a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", choices=("ours", "plain"), required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--lora", action="store_true", help="train adapters; else everything")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=3, help="steps that do not count")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="as the other scripts; nothing else is printed")
    arguments = parser.parse_args(argv)
    paths = sorted(arguments.images.glob("*.jpg"))[: arguments.batch_size * arguments.steps]
    clock = Clock()
    with TemporaryDirectory(prefix="blip2cap-train-") as name:
        try:
            facts = PROGRAMS[arguments.program](arguments, paths, Path(name), clock)
        except (UsageError, torch.OutOfMemoryError) as error:
            print(json.dumps({"skipped": str(error).strip().splitlines()[0]}))
            return 0
    step_s = clock.seconds(clock.wall, arguments.warmup)
    facts = {
        "images_per_s": digits(arguments.batch_size / step_s),
        "step_s": digits(step_s),
        "step_cpu_s": digits(clock.seconds(clock.cpu, arguments.warmup)),
        "peak_mb": digits(peak_bytes(torch.device(arguments.device)) / 1e6),
        **facts,
        "num_images": len(paths),
        "threads": torch.get_num_threads(),
        "load_average": [digits(load) for load in os.getloadavg()],
    }
    print(json.dumps(facts))
    return 0


def ours(arguments: argparse.Namespace, paths: Sequence[Path], folder: Path, clock: Clock) -> dict[str, Any]:
    """Train with `blip2cap train`, after the dry run that estimates its memory."""
    rows = [{"image": path.name, "caption": _text(number)} for number, path in enumerate(paths)]
    (folder / "train.json").write_text(json.dumps(rows))
    job = TrainJob(
        task="caption",
        out=folder / "run",
        model=ModelOptions(name=arguments.model, random_weights=arguments.random_weights),
        data=DataOptions(data=(str(folder / "train.json"),), images=(str(arguments.images),)),
        tune=TuneOptions(train=("lora",) if arguments.lora else ("all",)),
        optim=OptimOptions(learning_rate=RATE, vision_layer_decay=1.0),
        loop=LoopOptions(
            max_steps=arguments.steps, batch_size=arguments.batch_size, device=arguments.device, num_workers=0
        ),
    )
    estimate = run.dry_run(job, listener=clock).memory.estimate
    reset_peak(torch.device(arguments.device))
    run.train(job, listener=clock, stopped=lambda: False)
    return {"estimated_peak_mb": digits(estimate / 1e6)}


def plain(arguments: argparse.Namespace, paths: Sequence[Path], folder: Path, clock: Clock) -> dict[str, Any]:
    """Train with Trainer, the processor of the model and, for LoRA, peft."""
    checkpoint = find(ModelOptions(name=arguments.model, random_weights=arguments.random_weights))
    network: Any
    if arguments.random_weights:
        network = build(checkpoint, torch.float32, torch.device(arguments.device))
        side, tokenizer = checkpoint.image_size, stand_in_tokenizer(checkpoint.config, which="text")
        images = BlipImageProcessor(size={"height": side, "width": side})
        processor = Blip2Processor(images, tokenizer, num_query_tokens=network.config.num_query_tokens)
    else:
        network = Blip2ForConditionalGeneration.from_pretrained(checkpoint.folder, dtype=torch.float32)
        processor = Blip2Processor.from_pretrained(checkpoint.folder)
    processor.tokenizer.padding_side = "right"
    image_token = network.config.image_token_index
    if arguments.lora:
        from peft import LoraConfig, get_peft_model

        tune = TuneOptions()
        adapters = LoraConfig(
            r=tune.lora_rank,
            lora_alpha=tune.lora_alpha,
            lora_dropout=tune.lora_dropout,
            target_modules=r".*language_model.*\.(q|v)_proj",
        )
        network = get_peft_model(network, adapters)

    def collate(samples: list[tuple[Path, str]]) -> dict[str, torch.Tensor]:
        pictures = [Image.open(path).convert("RGB") for path, _ in samples]
        texts = [text + processor.tokenizer.eos_token for _, text in samples]
        batch = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
        hidden = (batch["input_ids"] == image_token) | (batch["attention_mask"] == 0)
        return {**batch, "labels": batch["input_ids"].masked_fill(hidden, -100)}

    class Note(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step(0)

    use_cpu = arguments.device == "cpu"
    settings = TrainingArguments(
        output_dir=str(folder),
        use_cpu=use_cpu,
        bf16=not use_cpu,
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=arguments.steps + 1,
    )
    samples: Any = [(path, _text(number)) for number, path in enumerate(paths)]
    reset_peak(torch.device(arguments.device))
    with open(os.devnull, "w") as null:  # Trainer prints a summary, whatever its settings
        stdout, sys.stdout = sys.stdout, null
        try:
            Trainer(network, settings, data_collator=collate, train_dataset=samples, callbacks=[Note()]).train()
        finally:
            sys.stdout = stdout
    return {}


def _text(number: int) -> str:
    return TEXTS[number % len(TEXTS)]


PROGRAMS = {"ours": ours, "plain": plain}

if __name__ == "__main__":
    sys.exit(main())
