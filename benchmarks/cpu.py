"""blip2cap on a CPU beside the plain transformers script: one command, nine minutes at the most.

    PYTHONPATH=. python benchmarks/cpu.py --out benchmarks/results/cpu.json

Ours and the script run in turns, so that a slow phase of the machine affects both; the ratios count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.decode import compare
from benchmarks.measure import Facts, Job
from benchmarks.pictures import LARGE_SIZE, photo
from benchmarks.suite import Section, divide, main, mean, most
from blip2cap.bench.programs import PLAIN
from blip2cap.options import ModelOptions

TINY = ModelOptions(name="tiny", device="cpu")
LARGE = ModelOptions(name="Salesforce/blip2-opt-2.7b", device="cpu", random_weights=True)
BATCH_SIZES = (16, 64, 128)
NUM_IMAGES, NUM_ASKED = 2000, 400
"""Images for captions, and for answers, by the small model."""
QUESTIONS = (
    "is it day or night?",
    "where is this?",
    "is there a house?",
    "how many trees are there?",
    "what colour is the house?",
)
_CAPTION_TOKENS, _ANSWER_TOKENS, _LARGE_TOKENS = 30, 10, 12


def decode(section: Section) -> None:
    """Decode a 12-megapixel JPEG to the model's pixels, in one thread."""
    folder = Path(section.pictures.folder)
    paths = [photo(folder / f"photo-{seed}.jpg", seed, LARGE_SIZE) for seed in (1, 2)]
    section.facts |= compare(paths, size=224, num_rounds=7)
    section.judge("fast_cpu_ms", section.facts["fast_cpu_ms"], at_most=25)
    alone = divide(section.facts["fast_cpu_ms"], section.facts["libjpeg_cpu_ms"])
    section.judge("times_libjpeg_alone", alone, at_most=1.1)


def tiny(section: Section) -> None:
    """Caption with the small model and default options, and with the plain script at several batch sizes."""
    images = section.pictures.scenes(NUM_IMAGES)
    job = Job(images=images, num_images=NUM_IMAGES, new_tokens=_CAPTION_TOKENS, warmup=64)

    def plain(name: str, batch_size: int, limit: int) -> float | None:
        options = {"images": images, "model": "tiny", "device": "cpu", "batch_size": batch_size, "limit": limit}
        return section.peer(name, PLAIN, **options, warmup=1, max_new_tokens=_CAPTION_TOKENS).get("images_per_s")

    before = section.ours("ours_before", TINY, job)
    rates = [plain(f"plain_batch_{batch_size}", batch_size, 512) for batch_size in BATCH_SIZES]
    best = plain("plain_at_its_best", best_batch_size(section.facts), NUM_IMAGES)
    after = section.ours("ours_after", TINY, job)
    plain("plain_batch_1", 1, 64)
    ours = mean(before.get("images_per_s"), after.get("images_per_s"))
    section.judge("times_the_plain_script", divide(ours, most(best, *rates)), at_least=3)


def best_batch_size(facts: Facts) -> int:
    """Return the best batch size of the plain script; where none is measured, its usual one."""
    rates = {size: facts.get(f"plain_batch_{size}", {}).get("images_per_s", 0.0) for size in BATCH_SIZES}
    return max(rates, key=lambda size: rates[size]) if any(rates.values()) else 64


def ask(section: Section, ours: Callable[[str, Sequence[str]], Facts]) -> Facts:
    """Ask all questions together, one by one, and together again; return the findings of the last.

    `ours` measures, under a name, a job with some questions.
    """
    before = ours("together", QUESTIONS)
    single = [ours(f"only_question_{number}", [question]) for number, question in enumerate(QUESTIONS, 1)]
    again = ours("together_again", QUESTIONS)
    one_by_one = sum(one["seconds"] for one in single) if all(single) else None
    together_s = mean(before.get("seconds"), again.get("seconds"))
    section.judge("times_one_by_one", divide(one_by_one, together_s), at_least=2.5)
    return again


def questions(section: Section) -> None:
    """Ask five questions about each image: together, one by one, and with the plain script."""
    images = section.pictures.scenes(NUM_ASKED)
    job = Job(images=images, num_images=NUM_ASKED, new_tokens=_ANSWER_TOKENS, warmup=32)

    def ours(name: str, questions: Sequence[str]) -> Facts:
        return section.ours(name, TINY, replace(job, questions=questions))

    again = ask(section, ours)
    batch_size = best_batch_size(section.suite.found.get("tiny", {}))
    options = {"images": images, "model": "tiny", "device": "cpu", "batch_size": batch_size, "limit": NUM_ASKED}
    plain = section.peer("plain", PLAIN, **options, warmup=1, max_new_tokens=_ANSWER_TOKENS, question=QUESTIONS)
    after = ours("together_after_plain", QUESTIONS)
    rate = mean(again.get("images_per_s"), after.get("images_per_s"))
    section.judge("times_the_plain_script", divide(rate, plain.get("images_per_s")))


def opt(section: Section) -> None:
    """Caption with a model of full size: float32 by the plain script, bfloat16 by both, int8 by ours."""
    images = section.pictures.scenes(16)

    def plain(dtype: str, count: int) -> float | None:
        options = {"images": images, "model": LARGE.name, "random_weights": True, "device": "cpu", "dtype": dtype}
        options |= {"batch_size": count, "limit": count}
        tokens = {"max_new_tokens": _LARGE_TOKENS, "min_new_tokens": _LARGE_TOKENS}
        return section.peer(f"plain_{dtype}", PLAIN, **options, **tokens).get("images_per_s")

    job = Job(images=images, num_images=16, batch_size=16, new_tokens=_LARGE_TOKENS, warmup=2)
    bfloat16 = replace(LARGE, dtype="bfloat16")
    plain_float32 = plain("float32", 4)
    small = section.ours("ours_int8", replace(bfloat16, quantize="int8-dynamic"), job)
    plain_bfloat16 = plain("bfloat16", 16)
    fast = section.ours("ours_bfloat16", bfloat16, job)
    fast_rate, small_rate = fast.get("images_per_s"), small.get("images_per_s")
    section.judge("bfloat16_s_per_image", fast.get("s_per_image"), at_most=1.2)
    section.judge("int8_s_per_image", small.get("s_per_image"), at_most=0.75)
    section.judge("bfloat16_times_float32_script", divide(fast_rate, plain_float32), at_least=3)
    section.judge("int8_times_float32_script", divide(small_rate, plain_float32), at_least=5)
    section.judge("bfloat16_times_bfloat16_script", divide(fast_rate, plain_bfloat16), at_least=1)
    section.judge("overhead", fast.get("overhead"), at_most=0.05)
    lengths = section.ours("lengths", bfloat16, Job(images=images, num_images=4, what="lengths"))
    section.judge("spread_lengths_to_mean_length", lengths.get("spread_to_mean"))
    section.judge("spread_lengths_to_longest", lengths.get("spread_to_longest"))


SECTIONS = {"decode": decode, "tiny": tiny, "questions": questions, "opt-2.7b": opt}

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, None))
