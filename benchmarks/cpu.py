"""What blip2cap reaches on a CPU, beside the plain transformers script: one command, nine minutes at the most.

    PYTHONPATH=. python benchmarks/cpu.py --out benchmarks/results/cpu.json

Ours and the script take turns, so that what slows the machine down for a while hits both; ratios are what counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.decode import measure, photo
from benchmarks.pictures import LARGE_SIZE, Pictures
from benchmarks.programs import Programs
from benchmarks.sections import QUESTIONS, ask, run
from benchmarks.suite import Facts, Suite, divide, judge, mean, most, value

TINY: Facts = {"name": "tiny", "device": "cpu"}
LARGE: Facts = {"name": "Salesforce/blip2-opt-2.7b", "device": "cpu", "random_weights": True}
PLAIN = "blip2cap.bench.plain_transformers"
BATCH_SIZES = (16, 64, 128)
_CAPTION_TOKENS, _ANSWER_TOKENS, _LARGE_TOKENS = 30, 10, 12
_MODEL_SIZE = 224


class Cpu:
    """The sections."""

    def __init__(
        self, suite: Suite, programs: Programs, pictures: Pictures, *, num_images: int = 2000, num_asked: int = 400
    ) -> None:
        self.suite, self.programs, self.pictures = suite, programs, pictures
        self.num_images = num_images
        """For captions by the small model."""
        self.num_asked = num_asked
        """For its answers."""
        self.best_batch_size = BATCH_SIZES[1]
        """Of the plain script; until it is measured, what it usually is."""

    def decode(self, facts: Facts) -> None:
        """Make the model's pixels of a 12-megapixel JPEG, in one thread."""
        folder = Path(self.pictures.folder)
        paths = [photo(folder / f"photo-{seed}.jpg", seed, LARGE_SIZE) for seed in (1, 2)]
        facts |= measure(paths, _MODEL_SIZE, 7)
        judge(facts, "fast_cpu_ms", facts["fast_cpu_ms"], at_most=30)

    def tiny(self, facts: Facts) -> None:
        """Caption with the small model as anybody would, and with the plain script at several batch sizes."""
        job = {"images": self.pictures.scenes(self.num_images), "num_images": self.num_images}
        job |= {"new_tokens": _CAPTION_TOKENS, "warmup": 64}

        def plain(batch_size: int, limit: int) -> Facts:
            return self.programs.peer(
                PLAIN,
                images=job["images"],
                model="tiny",
                device="cpu",
                batch_size=batch_size,
                limit=limit,
                warmup=1,
                max_new_tokens=_CAPTION_TOKENS,
            )

        attempt = self.suite.attempt
        before = attempt(facts, "ours_before", partial(self.programs.ours, TINY, job))
        rates: dict[int, float | None] = {}
        for batch_size in BATCH_SIZES:
            rates[batch_size] = value(attempt(facts, f"plain_batch_{batch_size}", partial(plain, batch_size, 512)))
        self.best_batch_size = max(rates, key=lambda batch_size: rates[batch_size] or 0.0)
        best = attempt(facts, "plain_at_its_best", partial(plain, self.best_batch_size, self.num_images))
        after = attempt(facts, "ours_after", partial(self.programs.ours, TINY, job))
        attempt(facts, "plain_batch_1", partial(plain, 1, 64))
        theirs = most(value(best), *rates.values())
        judge(facts, "times_the_plain_script", divide(mean(value(before), value(after)), theirs), at_least=3)

    def questions(self, facts: Facts) -> None:
        """Ask five questions about each image: all at once, one after the other, and with the plain script."""
        job = {"images": self.pictures.scenes(self.num_asked), "num_images": self.num_asked}
        job |= {"new_tokens": _ANSWER_TOKENS, "warmup": 32}

        def ours(*questions: str) -> Facts:
            return self.programs.ours(TINY, {**job, "questions": questions})

        attempt = self.suite.attempt
        again = ask(self.suite, facts, ours)
        plain = attempt(
            facts,
            "plain",
            lambda: self.programs.peer(
                PLAIN,
                images=job["images"],
                model="tiny",
                device="cpu",
                batch_size=self.best_batch_size,
                limit=self.num_asked,
                warmup=1,
                max_new_tokens=_ANSWER_TOKENS,
                question=list(QUESTIONS),
            ),
        )
        after = attempt(facts, "together_after_plain", partial(ours, *QUESTIONS))
        judge(facts, "times_the_plain_script", divide(mean(value(again), value(after)), value(plain)))

    def opt(self, facts: Facts) -> None:
        """Caption with a model of full size, in float32 by the plain script, in bfloat16 by both, in int8 by ours."""
        folder = self.pictures.scenes(16)

        def plain(dtype: str, count: int) -> Facts:
            return self.programs.peer(
                PLAIN,
                images=folder,
                model=LARGE["name"],
                random_weights=True,
                device="cpu",
                dtype=dtype,
                batch_size=count,
                limit=count,
                max_new_tokens=_LARGE_TOKENS,
                min_new_tokens=_LARGE_TOKENS,
            )

        job = {"images": folder, "num_images": 16, "batch_size": 16, "new_tokens": _LARGE_TOKENS, "warmup": 2}
        bfloat16 = {**LARGE, "dtype": "bfloat16"}
        int8 = {**bfloat16, "quantize": "int8-dynamic"}
        attempt = self.suite.attempt
        plain_float32 = attempt(facts, "plain_float32", partial(plain, "float32", 4))
        ours_int8 = attempt(facts, "ours_int8", partial(self.programs.ours, int8, job))
        plain_bfloat16 = attempt(facts, "plain_bfloat16", partial(plain, "bfloat16", 16))
        ours_bfloat16 = attempt(facts, "ours_bfloat16", partial(self.programs.ours, bfloat16, job))
        fast, small = value(ours_bfloat16), value(ours_int8)
        judge(facts, "bfloat16_s_per_image", value(ours_bfloat16, "s_per_image"), at_most=1.2)
        judge(facts, "int8_s_per_image", value(ours_int8, "s_per_image"), at_most=0.75)
        judge(facts, "bfloat16_times_float32_script", divide(fast, value(plain_float32)), at_least=3)
        judge(facts, "int8_times_float32_script", divide(small, value(plain_float32)), at_least=5)
        judge(facts, "bfloat16_times_bfloat16_script", divide(fast, value(plain_bfloat16)), at_least=1)
        judge(facts, "overhead", value(ours_bfloat16, "overhead"), at_most=0.05)
        self.lengths(facts)
        self.programs.close()

    def lengths(self, facts: Facts) -> None:
        """Decode texts of many lengths, with the model of full size that is loaded."""
        job = {"images": self.pictures.scenes(4), "what": "lengths"}
        bfloat16 = {**LARGE, "dtype": "bfloat16"}
        lengths = self.suite.attempt(facts, "lengths", partial(self.programs.ours, bfloat16, job))
        judge(facts, "spread_lengths_to_mean_length", value(lengths, "spread_to_mean"))
        judge(facts, "spread_lengths_to_longest", value(lengths, "spread_to_longest"))


SECTIONS = {"decode": Cpu.decode, "tiny": Cpu.tiny, "questions": Cpu.questions, "opt-2.7b": Cpu.opt}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure everything."""
    return run(__doc__, "cpu", SECTIONS, Cpu, argv)


if __name__ == "__main__":
    sys.exit(main())
