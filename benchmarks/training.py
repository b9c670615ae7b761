"""Training beside plain Trainer on the same classes, and peak memory beside what a dry run estimates.

    PYTHONPATH=. python benchmarks/training.py --out benchmarks/results/training.json

Programs run in turns, each in a process of its own; see train_loop.py. With a GPU, opt-2.7b with LoRA as well.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from benchmarks.measure import Facts
from benchmarks.suite import Section, divide, main, mean, most
from blip2cap.bench.programs import SkipError

TURNS = 2
STEPS, BATCH = 16, 16
_LARGE = "Salesforce/blip2-opt-2.7b"
_SIZES = (1, 2, 4, 8, 16, 32, 64)


def tiny(section: Section) -> None:
    """All of `tiny` on the CPU, in float32."""
    images = section.pictures.scenes(STEPS * BATCH)
    found = [_both(section, f"_{turn}", images, batch_size=BATCH, steps=STEPS) for turn in range(TURNS)]
    _judge(section, found)


def large(section: Section) -> None:
    """LoRA in the language model of opt-2.7b on a GPU, in bfloat16, at all batch sizes that fit."""
    if not torch.cuda.is_available():
        raise SkipError(f"torch {torch.__version__} sees no GPU")
    found = []
    for size in _SIZES:
        images = section.pictures.scenes(STEPS * size)
        options = {"model": _LARGE, "random_weights": True, "lora": True, "device": "cuda"}
        found.append(_both(section, f"_{size}", images, batch_size=size, steps=STEPS, **options))
        if not found[-1][0]:
            break
    _judge(section, found)


def _both(section: Section, suffix: str, images: str, **options: Any) -> tuple[Facts, Facts]:
    """Measure ours and plain Trainer, one after the other."""
    ours, plain = (
        section.peer(f"{program}{suffix}", "benchmarks.train_loop", program=program, images=images, **options)
        for program in ("ours", "plain")
    )
    return ours, plain


def _judge(section: Section, found: list[tuple[Facts, Facts]]) -> None:
    """Compare means of all runs that both programs have finished; CPU time depends less on what else runs."""
    pairs = [(ours, plain) for ours, plain in found if ours and plain]
    for name, key in (("times_plain_trainer", "step_s"), ("times_plain_trainer_in_cpu_time", "step_cpu_s")):
        section.judge(name, mean(*(divide(plain[key], ours[key]) for ours, plain in pairs)))
    ratios = [divide(ours["estimated_peak_mb"], ours["peak_mb"]) for ours, _ in found if ours]
    off = most(*(abs(ratio - 1) for ratio in ratios if ratio is not None))
    section.judge("estimate_of_memory_off_by", off, at_most=0.15)


SECTIONS = {"tiny": tiny, "opt_2_7b_lora": large}

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, None, device="cuda" if torch.cuda.is_available() else "cpu"))
