"""One benchmark from options to figures: machine, model, images, stages, and the plain script and a sweep if wanted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from blip2cap.bench import report
from blip2cap.bench.budget import Budget, duration
from blip2cap.bench.images import copy_small, draw_images, link
from blip2cap.bench.limit import count_work, find_limit, try_model
from blip2cap.bench.machine import decoding_rate, describe, matrix_rate, memory_rate
from blip2cap.bench.options import IMAGE_SIZE, BenchOptions
from blip2cap.bench.page import counted
from blip2cap.bench.programs import PLAIN, ProgramError, run_peer
from blip2cap.bench.stages import PASS_S, Loaded, Measured, choose_count, measure, median, run_once, sweep
from blip2cap.bench.trial import Trial
from blip2cap.errors import InputError, ModelError, UsageError
from blip2cap.models.base import dtype_name
from blip2cap.models.blip2 import quantize
from blip2cap.models.device import choose_device, choose_dtype
from blip2cap.models.registry import FAMILIES
from blip2cap.models.vlm.model import Vlm
from blip2cap.records import ImageRef
from blip2cap.workers.devices import num_cores

BATCH_SIZES = (1, 16, 64)
"""Of the plain script. The one that people copy takes one image at a time; we compare with the best of these."""
_LEAST_IMAGES, _LEAST_BATCHES = 256, 8
"""The plain script gets at most this many images, or batches: its rate changes no more, and it is slow."""
_SMALL_BYTES = 1e9
"""A model with fewer bytes stays loaded while the plain script runs."""
FIRST_DRAWN = 256
"""Scenes to choose the number of images with."""
_DRAW_S = 10.0
_MOST_COPIES = 1024
_WARM_UP = 16
_ALONE, _SHARED = 0.9, 0.4
"""Part of the time limit that the passes of blip2cap may take, without and with a baseline or a sweep after them."""
_TIMES_SLOWER = 8
"""Assumed ratio of the time of the plain script to that of blip2cap, until the script has run."""
_LOAD_BYTES_PER_S = 2e8
"""For the estimate at the start: a slow disk, or random weights on few cores."""


class Benchmark:
    """Measures as `options` ask; `say` is told the current step.

    Raises InputError if no image can be decoded, ModelError if none fits the model, and the errors of loading a model.
    """

    def __init__(
        self, options: BenchOptions, say: Callable[[str], None] = lambda line: None, loaded: Loaded | None = None
    ) -> None:
        self.options = options
        self.say = say
        self.loaded = loaded or Loaded(options.model)
        self.trial: Trial | None = None
        """Of a model whose work depends on the image."""

    def run(self) -> dict[str, Any]:
        """Measure everything; return the results, ready for JSON."""
        options, checkpoint = self.options, self.loaded.checkpoint
        family = FAMILIES[checkpoint.family]
        options.task.for_checkpoint(checkpoint, family)  # raises for a model that writes no text
        device = choose_device(options.model.device)
        dtype = choose_dtype(options.model.dtype, device, checkpoint)
        quantize.check(options.model, device)
        self.budget = Budget(options.max_minutes)
        self.say("measuring the machine ...")
        machine = describe(device)
        kind = options.model.quantize
        flops_per_s, bytes_per_s = matrix_rate(device, dtype, kind), memory_rate(device)
        if family.any_image_size:
            self.say(f"this takes at most {options.max_minutes:g} min (--max-minutes)")
        elif (expected_s := self._expected_s(flops_per_s, bytes_per_s, dtype.itemsize)) <= self.budget.left_s:
            self.say(f"this takes about {duration(expected_s)}, at most {options.max_minutes:g} min (--max-minutes)")
        else:
            self.say(f"in full, this would take about {duration(expected_s)}; it is cut short {self.budget.why}")
        self.say(f"loading {checkpoint.name} ...")
        self.loaded.model.check(options.generate)
        if options.baseline and isinstance(self.loaded.model, Vlm) and self.loaded.model.prompter.form == "text":
            raise UsageError(
                f"--baseline: the chat template of {checkpoint.name} takes plain texts and places the image itself, "
                "which the plain script does not do. Leave it out."
            )
        load_s = self.loaded.load_s
        with TemporaryDirectory(prefix="blip2cap-bench-") as name:
            folder = Path(name)
            measured, refs, good = self._measure(folder)
            # Once more: what the machine was doing for others may have ended.
            flops_per_s = max(flops_per_s, matrix_rate(device, dtype, kind))
            bytes_per_s = max(bytes_per_s, memory_rate(device))
            limit = find_limit(
                self.loaded, options, measured, self.trial, flops_per_s=flops_per_s, bytes_per_s=bytes_per_s
            )
            facts: dict[str, Any] = {
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": options.command,
                "machine": asdict(machine),
                "model": {
                    "name": checkpoint.name,
                    "commit": checkpoint.commit,
                    "family": checkpoint.family,
                    "dtype": dtype_name(dtype),
                    "quantize": kind,
                    "device": str(device),
                    "random_weights": options.model.random_weights,
                    "load_s": round(load_s, 2),
                },
                "settings": {
                    **asdict(options.generate),
                    "batch_size": options.batch.batch_size,
                    "decode": options.decode.mode,
                    "threads": options.decode.threads,
                    "questions": options.questions,
                    "repeats": len(measured.whole),
                },
                "images": {
                    "num_images": len(refs),
                    "drawn": options.refs is None,
                    "size": (options.image_size or IMAGE_SIZE) if options.refs is None else None,
                },
                "rates": report.rates(limit, measured.decoding),
                "work": report.work_facts(limit),
                "figures": report.figures(measured, limit, min(options.decode.threads, num_cores())),
            }
            if options.estimate is not None:
                facts["estimate"] = report.estimate(options.estimate, facts["figures"]["images_per_s"])
            if options.baseline:
                facts["baseline"] = self._compare(measured, refs, folder, limit)
            if options.sweep:
                self.say("batch sizes 1, 2, 4, ...")
                points = sweep(self.loaded, options, good, folder, self.budget)
                if not points:
                    self.say(f"no batch size, {self.budget.why}")
                facts["sweep"] = [
                    {"batch_size": size, "images_per_s": report.spread(passes)} for size, passes in points.items()
                ]
        return facts

    def _measure(self, folder: Path) -> tuple[Measured, list[ImageRef], list[ImageRef]]:
        """Prepare the images and measure; return the images of a pass too, and distinct ones that can be decoded."""
        options, form = self.options, self.loaded.model.image_input
        found, size = list(options.refs or ()), options.image_size or IMAGE_SIZE
        self.say("drawing scenes ..." if options.refs is None else "trying the images ...")
        if options.refs is None:
            budget_s = self.budget.left_s / 4 if options.num_images else _DRAW_S
            found = draw_images(folder, range(options.num_images or FIRST_DRAWN), size, budget_s=budget_s)
        decoding, good = decoding_rate(found, form, options.decode)
        if not good:
            raise InputError(f"none of {len(found)} images can be decoded; `blip2cap caption` says why.")
        small = folder / "small"
        small.mkdir()
        copies = copy_small(good[:_MOST_COPIES], small, form, options.decode)
        self.trial = try_model(self.loaded, options, small)
        chosen, image_s = choose_count(self.loaded, options, copies, folder)
        spare_s = self.budget.left_s * (_SHARED if options.baseline or options.sweep else _ALONE)
        wanted = min(options.num_images or chosen, len(options.refs or ()) or sys.maxsize)
        count = min(wanted, max(1, int(spare_s / image_s / 3)))  # a warm-up and two passes
        if options.refs is None and count > len(found):
            more = draw_images(folder, range(len(found), count), size, budget_s=_DRAW_S)
            copies += copy_small(more[: _MOST_COPIES - len(copies)], small, form, options.decode)
            found, good = found + more, good + more
        found = found[:count]
        if len(found) < wanted:
            self.say(f"{len(found)} of {wanted} images, {self.budget.why}")
        passes_s = len(found) * image_s * (2 * options.repeats + 1)
        time_s = duration(min(passes_s, spare_s))
        self.say(f"{counted(len(found), 'image')}, {2 * options.repeats} passes, about {time_s} ...")
        measured = measure(self.loaded, options, found, copies[: len(found)], decoding, folder, spare_s)
        if len(measured.whole) < options.repeats:
            self.say(f"{2 * len(measured.whole)} of {2 * options.repeats} passes, {self.budget.why}")
        if not median(measured.whole).num_images or not median(measured.alone).num_images:
            raise ModelError(
                f"--model {options.model.name}: none of {len(found)} images went through the model; "
                "`blip2cap caption` says why."
            )
        return measured, found, good

    def _expected_s(self, flops_per_s: float, bytes_per_s: float, number_bytes: int) -> float:
        """Estimate the time of the benchmark from the size of the model, at half the speed that the machine allows."""
        options = self.options
        work = count_work(
            self.loaded,
            options,
            prompts=[16] * len(options.questions or (None,)),
            new_tokens=options.generate.max_new_tokens,
            number_bytes=number_bytes,
        )
        image_s = 2 * work.seconds(flops_per_s, bytes_per_s, images=4, texts=4)
        load_s = (work["vision"].weight_bytes + work.step_bytes) / _LOAD_BYTES_PER_S
        pass_s = options.num_images * image_s if options.num_images else max(PASS_S, 4 * image_s)
        expected_s = 10 + load_s + pass_s * (2 * options.repeats + 2)
        if options.baseline:
            expected_s += len(BATCH_SIZES) * (10 + 2 * load_s + _TIMES_SLOWER * pass_s) + load_s + 2 * pass_s
        return expected_s + (60 if options.sweep else 0)

    def _compare(
        self, measured: Measured, refs: Sequence[ImageRef], folder: Path, limit: report.Limit
    ) -> dict[str, Any]:
        """Run the plain script once at each batch size, then ours again: a slow phase of the machine affects both."""
        options, before = self.options, median(measured.whole)
        refs = [ref for ref in refs if ref.name not in before.bad]  # the plain script would end at the first bad one
        linked = link(refs, folder / "linked")
        if sum(phase.weight_bytes for phase in limit.work.phases) > _SMALL_BYTES:
            self.loaded.free()
        again_s = self.loaded.load_s + 2 * before.seconds  # ours once more, after the script
        image_s = _TIMES_SLOWER * before.seconds / before.num_images
        runs: list[dict[str, Any]] = []
        for number, batch_size in enumerate(BATCH_SIZES):
            if number and BATCH_SIZES[number - 1] >= len(refs):
                break  # the same batches as before
            self.say(f"plain transformers, batch size {batch_size} ...")
            share_s = (self.budget.left_s - again_s) / (len(BATCH_SIZES) - number)
            num_images = max(1, min(len(refs), int((share_s - 2 * self.loaded.load_s) / image_s) - batch_size))
            try:
                if share_s < image_s + self.loaded.load_s:
                    raise ProgramError(f"skipped {self.budget.why}")
                run = run_peer(PLAIN, self._plain_options(linked, batch_size, num_images), timeout_s=share_s)
                image_s = 1 / run["images_per_s"]
            except ProgramError as error:
                run = {"batch_size": batch_size, "error": str(error)}
                self.say(f"plain transformers, batch size {batch_size}: {error}")
            runs.append(run)
        after = before
        if any("error" not in run for run in runs):
            self.say("blip2cap once more ...")
            run_once(self.loaded, options, refs[:_WARM_UP], folder)
            again = [run_once(self.loaded, options, refs, folder)]
            while len(again) < options.repeats and again[-1].seconds < self.budget.left_s:
                again.append(run_once(self.loaded, options, refs, folder))
            after = median(again)
        # The script asks one question after the other about all images, we all questions about one after the other.
        texts = before.texts[:: len(options.questions or (None,))]
        return report.baseline_facts(runs, before.images_per_s, after.images_per_s, texts)

    def _plain_options(self, folder: Path, batch_size: int, num_images: int) -> dict[str, Any]:
        options, checkpoint = self.options, self.loaded.checkpoint
        random_weights = options.model.random_weights
        max_pixels = FAMILIES[checkpoint.family].max_pixels(options.model)
        return {
            "images": folder,
            "model": checkpoint.name if random_weights else checkpoint.folder,
            "random_weights": random_weights,
            "dtype": report.PLAIN_DTYPE,
            "device": options.model.device,
            "batch_size": batch_size,
            "limit": min(num_images, max(_LEAST_IMAGES, _LEAST_BATCHES * batch_size)),
            "warmup": 1,
            "max_new_tokens": options.generate.max_new_tokens,
            "min_new_tokens": options.generate.min_new_tokens,
            "num_beams": options.generate.num_beams,
            "question": options.questions or (),
        } | ({} if max_pixels is None else {"max_pixels": max_pixels})
