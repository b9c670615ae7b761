"""The tests that need a GPU, profiles, and blip2cap beside others: one command, nine minutes at the most.

    PYTHONPATH=. python3 benchmarks/gpu.py --out benchmarks/results/gpu.json

Models have their real size and random weights, compute in bfloat16, and generate 12 new tokens for each image. Needs
torch with CUDA, transformers, accelerate, Pillow, psutil, typer, rich and tqdm, and pytest for the tests; blip2cap need
not be installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from benchmarks.cpu import ask
from benchmarks.measure import Facts, Job
from benchmarks.programs import ROOT
from benchmarks.suite import Section, divide, main, mean, most
from blip2cap.bench.programs import PLAIN, ProgramError, SkipError
from blip2cap.options import ModelOptions

OPT = ModelOptions(name="Salesforce/blip2-opt-2.7b", dtype="bfloat16", device="cuda", random_weights=True)
TUNED, VLLM = "benchmarks.tuned_transformers", "benchmarks.vllm_opt"
PEERS = ((PLAIN, 64, 256, 1), (TUNED, 256, 2048, 2), (PLAIN, 256, 512, 1), (TUNED, 64, 1024, 2), (PLAIN, 1, 64, 1))
"""Script, batch size, images, and batches to warm up with; the tuned one compiles in them."""
TESTS = ("tests/test_model_gpu.py", "tests/test_model_quantize.py", "tests/test_model_load.py")
"""The files that hold tests for a GPU: others may need packages that the machine lacks."""
TESTS_S = 120.0
"""The time that the tests may take from the measurements."""
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


def tests(section: Section) -> None:
    """Run the tests that need a GPU, without the project's settings, which need plugins of pytest."""
    if find_spec("pytest") is None:
        raise SkipError("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    command += ["-m", "gpu", "-q", "-rfEs", "--tb=short", "--color=no", *TESTS]
    timeout_s = min(TESTS_S, section.suite.left_s())
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=timeout_s)
    lines = done.stdout.splitlines()
    section.facts |= {"summary": lines[-1] if lines else "", "lines": [line[:300] for line in lines[-200:]]}
    if done.returncode:
        raise ProgramError(f"pytest ended with {done.returncode}: {section.facts['summary'] or done.stderr[-300:]}")


def profiles(section: Section) -> None:
    """Profile one batch of the vision encoder, one step, and its capture."""
    facts = section.programs.ours(OPT, job(section, 1, what="profiles"))
    section.facts |= facts
    for part in ("vision_batch", "step", "capture", "replay"):
        section.judge(f"{part}_ms", facts.get(part, {}).get("ms"))


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
    "tests": tests,
    "profiles": profiles,
    "opt-2.7b": opt,
    "beams": one(OPT, 2048, at_least=450, num_beams=5),
    "questions": questions,
    "fp8": one(replace(OPT, quantize="fp8"), 2048),
    "flan-t5-xl": one(replace(OPT, name="Salesforce/blip2-flan-t5-xl"), 2048),
    "peers": peers,
    "12mp": large,
    "ladder": ladder,
    "int8-dynamic": one(replace(OPT, quantize="int8-dynamic"), 2048),
    "opt-6.7b": one(replace(OPT, name="Salesforce/blip2-opt-6.7b"), 2048),
}
"""First what decides what to mend, then targets and peers; sections of one model follow each other: it is loaded once.

Quantisation saves memory on a GPU, and is measured for what it costs.
"""

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, None, device="cuda"))
