"""blip2cap on a GPU, beside others and switch by switch: one command, nine minutes at the most.

    PYTHONPATH=. python3 benchmarks/gpu.py --out benchmarks/results/gpu.json

Models have their real size and random weights, compute in bfloat16, and generate 12 new tokens for each image. Needs
torch with CUDA, transformers, accelerate, Pillow, psutil, typer, rich and tqdm; blip2cap need not be installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from benchmarks.cpu import ask
from benchmarks.measure import Facts, Job
from benchmarks.suite import Section, divide, main, mean, most
from blip2cap.bench.programs import PLAIN, SkipError
from blip2cap.options import ModelOptions

OPT = ModelOptions(name="Salesforce/blip2-opt-2.7b", dtype="bfloat16", device="cuda", random_weights=True)
TUNED, VLLM = "benchmarks.tuned_transformers", "benchmarks.vllm_opt"
PEERS = ((PLAIN, 64, 256, 1), (TUNED, 256, 2048, 2), (PLAIN, 256, 512, 1), (TUNED, 64, 1024, 2), (PLAIN, 1, 64, 1))
"""Script, batch size, images, and batches to warm up with; the tuned one compiles in them."""
NEW_TOKENS = 12
NUM_IMAGES, NUM_LARGE = 4096, 256
LADDER: dict[str, dict[str, Any]] = {
    "without_cuda_graphs": {"switches": {"start_capture": None}},
    "waiting_for_every_step": {"switches": {"reads_late": False}},
    "exact_decoding": {"decode": "exact"},
    "one_decoding_thread": {"threads": 1},
    **{f"{count}_texts_at_once": {"capacity": count} for count in (64, 128, 256, 512)},
    **{f"{count}_images_at_once": {"image_batch": count} for count in (16, 32, 64, 128)},
}
"""The full engine with one change each."""


def job(section: Section, count: int, **values: Any) -> Job:
    """Describe a run over scenes of 640x480."""
    settings = {"images": section.pictures.scenes(NUM_IMAGES), "new_tokens": NEW_TOKENS, "warmup": 512}
    return Job(num_images=count, **{**settings, **values})


def opt(section: Section) -> None:
    """Caption greedily: the stages, each with its own time, and the share of what the machine allows."""
    section.facts["bench"] = section.programs.ours(OPT, job(section, NUM_IMAGES, what="stages", repeats=2))
    figures = section.facts["bench"]["figures"]
    section.judge("images_per_s", figures["images_per_s"]["median"], at_least=630)
    section.judge("share_of_limit", figures["share_of_limit"], at_least=0.6)
    section.judge("overhead", figures["overhead"])


def one(model: ModelOptions, count: int, *, at_least: float | None = None, **values: Any) -> Callable[[Section], None]:
    """Return a section that runs one job."""

    def run(section: Section) -> None:
        if model.quantize == "fp8" and find_spec("torchao") is None:
            raise SkipError("torchao is not installed")
        section.facts |= section.programs.ours(model, job(section, count, **values))
        section.judge("images_per_s", section.facts["images_per_s"], at_least=at_least)

    return run


def questions(section: Section) -> None:
    """Ask five questions about each image: together, and one by one."""

    def ours(name: str, questions: Sequence[str]) -> Facts:
        return section.ours(name, OPT, job(section, 1024, questions=questions, warmup=256))

    ask(section, ours)


def large(section: Section) -> None:
    """Caption photographs of 12 megapixels."""
    fast_job = job(section, NUM_LARGE, repeats=2, images=section.pictures.large(NUM_LARGE), warmup=64)
    fast = section.ours("fast", OPT, fast_job).get("images_per_s")
    exact = section.ours("exact", OPT, replace(fast_job, decode="exact")).get("images_per_s")
    section.judge("images_per_s", fast)
    section.judge("times_exact_decoding", divide(fast, exact))


def peers(section: Section) -> None:
    """Run the programs that blip2cap is compared with, and ours before and after."""
    images = section.pictures.scenes(NUM_IMAGES)

    def rate(name: str, module: str, batch_size: int, limit: int, warmup: int) -> float | None:
        options = {"images": images, "model": OPT.name, "random_weights": True, "dtype": OPT.dtype}
        options |= {"batch_size": batch_size, "limit": limit, "warmup": warmup}
        tokens = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
        return section.peer(name, module, **options, **tokens).get("images_per_s")

    before = section.ours("ours_before", OPT, job(section, 2048))
    rates: dict[str, list[float | None]] = {PLAIN: [], TUNED: []}
    for module, size, limit, warmup in PEERS:
        name = f"{'plain' if module == PLAIN else 'tuned'}_batch_{size}"
        rates[module].append(rate(name, module, size, limit, warmup))
    vllm = rate("vllm", VLLM, 256, 1024, 1)
    after = section.ours("ours_after", OPT, job(section, 2048))
    ours = mean(before.get("images_per_s"), after.get("images_per_s"))
    section.judge("times_the_plain_script", divide(ours, most(*rates[PLAIN])), at_least=4)
    section.judge("times_the_tuned_script", divide(ours, most(*rates[TUNED])), at_least=1.5)
    section.judge("times_vllm", divide(ours, vllm), at_least=2)


def ladder(section: Section) -> None:
    """Change one thing of the full engine at a time."""
    full = job(section, 2048, warmup=0)
    section.ours("warm_up", OPT, full)
    before = section.ours("full_engine", OPT, full)
    rates = {name: section.ours(name, OPT, replace(full, **change)) for name, change in LADDER.items()}
    after = section.ours("full_engine_again", OPT, full)
    for name, found in rates.items():
        ours = mean(before.get("images_per_s"), after.get("images_per_s"))
        section.judge(name, divide(found.get("images_per_s"), ours))


SECTIONS: dict[str, Callable[[Section], None]] = {
    "opt-2.7b": opt,
    "beams": one(OPT, 2048, at_least=450, num_beams=5),
    "questions": questions,
    "12mp": large,
    "fp8": one(replace(OPT, quantize="fp8"), NUM_IMAGES, at_least=900),
    "peers": peers,
    "ladder": ladder,
    "int8-dynamic": one(replace(OPT, quantize="int8-dynamic"), NUM_IMAGES),
    "flan-t5-xl": one(replace(OPT, name="Salesforce/blip2-flan-t5-xl"), 2048),
    "opt-6.7b": one(replace(OPT, name="Salesforce/blip2-opt-6.7b"), 2048),
}
"""First those with a target; sections of one model follow each other, so that it is loaded once."""

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, None, device="cuda"))
