"""One benchmark from options to figures: machine, model, images, stages, and the peers if asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from blip2cap.bench import report
from blip2cap.bench.baseline import LEAST_BATCHES, LEAST_IMAGES, Loaded, Peer, compare, run_plain
from blip2cap.bench.images import copy_small, draw_images, link
from blip2cap.bench.machine import decoding_rate, describe, matrix_rate, memory_rate, num_cores
from blip2cap.bench.options import IMAGE_SIZE, BenchOptions
from blip2cap.bench.stages import (
    Measured,
    Pass,
    Setup,
    choose_count,
    measure,
    median,
    run_once,
)
from blip2cap.bench.sweep import sweep
from blip2cap.bench.work import count
from blip2cap.errors import InputError, ModelError
from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2 import quantize
from blip2cap.models.blip2.load import load
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.checkpoint import find
from blip2cap.models.device import choose_device, choose_dtype
from blip2cap.models.registry import FAMILIES
from blip2cap.records import ImageRef
from blip2cap.tasks.caption import Caption
from blip2cap.tasks.vqa import Vqa

_WEIGHT_BYTES = {"int8": 1.0, "int8-dynamic": 1.0, "fp8": 1.0, "nf4": 0.5}
"""Of a weight, by how it is quantised."""
_SMALL_BYTES = 1e9
"""A model with less need not make room for a peer."""
_FIRST_DRAWN = 256
"""Scenes to choose the number of images with."""
_DRAW_S = 10.0
_MOST_COPIES = 1024
_WARM_UP = 16
_ANY_NAME = "x.jpg"
"""Prompts of a benchmark hold no name."""


class Benchmark:
    """Measures as `options` say; `say` is told what is under way.

    Raises InputError if no image can be decoded, ModelError if none fits the model, and what loading a model raises.
    """

    def __init__(self, options: BenchOptions, say: Callable[[str], None] = lambda line: None) -> None:
        self.options = options
        self.say = say

    def run(self) -> dict[str, Any]:
        """Do it all; return the results as JSON takes them."""
        options = self.options
        checkpoint = find(options.model)
        device = choose_device(options.model.device)
        dtype = choose_dtype(options.model.dtype, device, checkpoint)
        quantize.check(options.model, device)
        self.say("measuring the machine ...")
        machine = describe(device)
        kind = options.model.quantize
        flops_per_s, bytes_per_s = matrix_rate(device, dtype, kind), memory_rate(device)
        self.say(f"loading {checkpoint.name} ...")
        started = time.perf_counter()
        loaded = Loaded(lambda: load(checkpoint, options.model))
        loaded.model.check(options.generate)
        load_s = time.perf_counter() - started
        setup = Setup(
            task=self._task().for_family(FAMILIES[checkpoint.family]), decode=options.decode, batch=options.batch
        )
        with TemporaryDirectory(prefix="blip2cap-bench-") as name:
            folder = Path(name)
            measured, refs, good = self._measure(loaded.model, setup, folder)
            # Once more: what the machine was doing for others may have passed.
            flops_per_s = max(flops_per_s, matrix_rate(device, dtype, kind))
            bytes_per_s = max(bytes_per_s, memory_rate(device))
            limit = self._limit(checkpoint, loaded.model, setup, measured, flops_per_s, bytes_per_s)
            facts: dict[str, Any] = {
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": options.command,
                "machine": asdict(machine),
                **self._settings(checkpoint, str(device), str(dtype).removeprefix("torch."), load_s, len(refs)),
                "rates": report.rates(limit, measured.decoding),
                "work": report.work_facts(limit),
                "figures": report.figures(measured, limit, min(options.decode.threads, num_cores())),
            }
            if options.baseline:
                facts["baseline"] = self._compare(checkpoint, loaded, setup, measured, refs, folder, limit)
            if options.sweep:
                self.say("batch sizes 1, 2, 4, ...")
                facts["sweep"] = report.sweep_facts(sweep(loaded.model, setup, good, folder, repeats=options.repeats))
        return facts

    def _settings(
        self, checkpoint: Checkpoint, device: str, dtype: str, load_s: float, num_images: int
    ) -> dict[str, Any]:
        """Say what was measured: with which model, how it wrote, and on what."""
        options = self.options
        return {
            "model": {
                "name": checkpoint.name,
                "commit": checkpoint.commit,
                "family": checkpoint.family,
                "dtype": dtype,
                "quantize": options.model.quantize,
                "device": device,
                "random_weights": options.model.random_weights,
                "load_s": round(load_s, 2),
            },
            "settings": {
                **asdict(options.generate),
                "batch_size": options.batch.batch_size,
                "decode": options.decode.mode,
                "threads": options.decode.threads,
                "questions": options.questions,
                "repeats": options.repeats,
            },
            "images": {
                "num_images": num_images,
                "drawn": options.refs is None,
                "size": (options.image_size or IMAGE_SIZE) if options.refs is None else None,
            },
        }

    def _measure(self, model: Blip2, setup: Setup, folder: Path) -> tuple[Measured, list[ImageRef], list[ImageRef]]:
        """Prepare the images and measure; return the images of a pass too, and different ones that are good."""
        options = self.options
        found, size = list(options.refs or ()), options.image_size or IMAGE_SIZE
        self.say("drawing scenes ..." if options.refs is None else "trying the images ...")
        if options.refs is None:
            budget_s = None if options.num_images else _DRAW_S
            found = draw_images(folder, range(options.num_images or _FIRST_DRAWN), size, budget_s=budget_s)
        decoding, good = decoding_rate(found, model.image_size, options.decode)
        if not good:
            raise InputError(f"none of {len(found)} images can be decoded; `blip2cap caption` says why.")
        small = folder / "small"
        small.mkdir()
        copies = copy_small(good[:_MOST_COPIES], small, model.image_size, options.decode)
        if options.num_images is None:
            count = choose_count(model, setup, copies, folder)
            if options.refs is None and count > len(found):
                more = draw_images(folder, range(len(found), count), size, budget_s=_DRAW_S)
                copies += copy_small(more[: _MOST_COPIES - len(copies)], small, model.image_size, options.decode)
                found, good = found + more, good + more
            found = found[:count]
        self.say(f"{len(found)} images, {2 * options.repeats} passes ...")
        measured = measure(model, setup, found, copies[: len(found)], decoding, folder, repeats=options.repeats)
        if not median(measured.whole).num_images or not median(measured.alone).num_images:
            raise ModelError(
                f"--model {options.model.name}: none of {len(found)} images went through the model; "
                "`blip2cap caption` says why."
            )
        return measured, found, good

    def _task(self) -> Caption | Vqa:
        generate = self.options.generate
        if self.options.questions is None:
            return Caption(generate=generate)
        return Vqa(questions=self.options.questions, generate=generate)

    def _limit(
        self,
        checkpoint: Checkpoint,
        model: Blip2,
        setup: Setup,
        measured: Measured,
        flops_per_s: float,
        bytes_per_s: float,
    ) -> report.Limit:
        """Count the work of the texts that came out: as long as they are, at the batch size they had."""
        whole = median(measured.whole)
        new_tokens = whole.num_tokens / max(1, whole.num_rows_ok)
        ref = ImageRef(path=_ANY_NAME, name=_ANY_NAME)
        prompts = [setup.task.prompt(ref, label) for label in setup.task.labels]
        work = count(
            checkpoint.config,
            prompts=[len(model.tokenizer(prompt).input_ids) for prompt in prompts],
            new_tokens=new_tokens,
            num_beams=self.options.generate.num_beams,
            qformer_prompts=[
                len(model.qformer_tokenizer(prompt).input_ids) for prompt in prompts if model.qformer_tokenizer
            ],
            number_bytes=model.dtype.itemsize,
            weight_bytes=_WEIGHT_BYTES.get(self.options.model.quantize or ""),
        )
        return report.Limit(
            work=work,
            flops_per_s=flops_per_s,
            bytes_per_s=bytes_per_s,
            images=max(1, min(whole.images_at_once, whole.num_images)),
            texts=max(1, min(whole.texts_at_once, whole.num_rows_ok)),
            new_tokens=new_tokens,
        )

    def _compare(
        self,
        checkpoint: Checkpoint,
        loaded: Loaded,
        setup: Setup,
        measured: Measured,
        refs: Sequence[ImageRef],
        folder: Path,
        limit: report.Limit,
    ) -> dict[str, Any]:
        options, before = self.options, median(measured.whole)
        refs = [ref for ref in refs if ref.name not in before.bad]  # the plain script would end at the first bad one
        linked = link(refs, folder / "linked")
        if sum(phase.weight_bytes for phase in limit.work.phases) > _SMALL_BYTES:
            loaded.free()

        def again() -> Pass:
            model = loaded.model
            run_once(model, setup, refs[:_WARM_UP], folder)
            return median([run_once(model, setup, refs, folder) for _ in range(options.repeats)])

        def plain(batch_size: int) -> Peer:
            return run_plain(
                linked,
                batch_size,
                num_images=min(len(refs), max(LEAST_IMAGES, LEAST_BATCHES * batch_size)),
                model=checkpoint.name if options.model.random_weights else str(checkpoint.folder),
                random_weights=options.model.random_weights,
                device=options.model.device,
                generate=options.generate,
                questions=options.questions or (),
            )

        comparison = compare(before, again, plain, say=self.say)
        # The script queries one question after the other about all images, we all questions about one after the other.
        return report.baseline_facts(comparison, before.texts[:: len(options.questions or (None,))])
