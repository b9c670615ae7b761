"""What blip2cap reaches on a GPU, beside others and switch by switch: one command, nine minutes at the most.

    PYTHONPATH=. python3 benchmarks/gpu.py --out benchmarks/results/gpu.json

Models have their real size and random weights, compute in bfloat16, and write 12 new tokens for each image. Needs torch
with CUDA, transformers, accelerate, Pillow, psutil, typer, rich and tqdm; blip2cap need not be installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

from benchmarks.cpu import PLAIN
from benchmarks.pictures import Pictures
from benchmarks.programs import Programs
from benchmarks.sections import ask, run
from benchmarks.suite import Facts, SkipError, Suite, arguments, divide, judge, mean, most, value

OPT: Facts = {"name": "Salesforce/blip2-opt-2.7b", "dtype": "bfloat16", "device": "cuda", "random_weights": True}
TUNED, VLLM = "benchmarks.tuned_transformers", "benchmarks.vllm_opt"
PEERS = ((PLAIN, 64, 256, 1), (TUNED, 256, 2048, 2), (PLAIN, 256, 512, 1), (TUNED, 64, 1024, 2), (PLAIN, 1, 64, 1))
"""Script, batch size, images, and batches to warm up with; the tuned one compiles in them."""
NEW_TOKENS = 12
NUM_IMAGES, NUM_LARGE = 4096, 256
_WARM_UP = 512
LADDER: dict[str, Facts] = {
    "without_cuda_graphs": {"graphs": False},
    "looking_for_ends_at_every_step": {"check_every": 1},
    "exact_decoding": {"decode": "exact"},
    "one_decoding_thread": {"threads": 1},
    **{f"{count}_texts_at_once": {"capacity": count} for count in (64, 128, 256, 512)},
    **{f"{count}_images_at_once": {"image_batch": count} for count in (16, 32, 64, 128)},
}
"""The full engine, but for one thing."""


class Gpu:
    """The sections."""

    def __init__(self, suite: Suite, programs: Programs, pictures: Pictures) -> None:
        self.suite, self.programs, self.pictures = suite, programs, pictures

    def job(self, count: int, **values: object) -> Facts:
        """Describe a run over scenes of 640x480."""
        folder = self.pictures.scenes(NUM_IMAGES)
        return {"images": folder, "num_images": count, "new_tokens": NEW_TOKENS, "warmup": _WARM_UP, **values}

    def opt(self, facts: Facts) -> None:
        """Caption greedily; with the stages, each with its own time, and the share of what the machine allows."""
        facts["bench"] = self.programs.ours(OPT, self.job(NUM_IMAGES, what="stages", repeats=2))
        figures = facts["bench"]["figures"]
        judge(facts, "images_per_s", figures["images_per_s"]["median"], at_least=630)
        judge(facts, "share_of_limit", figures["share_of_limit"], at_least=0.6)
        judge(facts, "overhead", figures["overhead"])

    def beams(self, facts: Facts) -> None:
        """Search with five beams."""
        facts |= self.programs.ours(OPT, self.job(2048, num_beams=5))
        judge(facts, "images_per_s", value(facts), at_least=450)

    def questions(self, facts: Facts) -> None:
        """Ask five questions about each image: all at once, and one after the other."""

        def ours(*questions: str) -> Facts:
            return self.programs.ours(OPT, self.job(1024, questions=questions, warmup=256))

        ask(self.suite, facts, ours)

    def large(self, facts: Facts) -> None:
        """Caption photographs of 12 megapixels."""
        job = self.job(NUM_LARGE, repeats=2, images=self.pictures.large(NUM_LARGE), warmup=64)
        attempt = self.suite.attempt
        fast = attempt(facts, "fast", partial(self.programs.ours, OPT, job))
        exact = attempt(facts, "exact", partial(self.programs.ours, OPT, {**job, "decode": "exact"}))
        judge(facts, "images_per_s", value(fast))
        judge(facts, "times_exact_decoding", divide(value(fast), value(exact)))

    def peers(self, facts: Facts) -> None:
        """Run what blip2cap is compared with, and ours before and after."""

        def peer(module: str, batch_size: int, limit: int, warmup: int) -> Facts:
            return self.programs.peer(
                module,
                images=self.pictures.scenes(NUM_IMAGES),
                model=OPT["name"],
                random_weights=True,
                dtype="bfloat16",
                batch_size=batch_size,
                limit=limit,
                warmup=warmup,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
            )

        attempt = self.suite.attempt
        before = attempt(facts, "ours_before", partial(self.programs.ours, OPT, self.job(2048)))
        rates: dict[str, list[float | None]] = {PLAIN: [], TUNED: []}
        for module, size, limit, warmup in PEERS:
            name = f"{'plain' if module == PLAIN else 'tuned'}_batch_{size}"
            rates[module].append(value(attempt(facts, name, partial(peer, module, size, limit, warmup))))
        vllm = attempt(facts, "vllm", partial(peer, VLLM, 256, 1024, 1))
        after = attempt(facts, "ours_after", partial(self.programs.ours, OPT, self.job(2048)))
        ours = mean(value(before), value(after))
        judge(facts, "times_the_plain_script", divide(ours, most(*rates[PLAIN])), at_least=4)
        judge(facts, "times_the_tuned_script", divide(ours, most(*rates[TUNED])), at_least=1.5)
        judge(facts, "times_vllm", divide(ours, value(vllm)), at_least=2)

    def ladder(self, facts: Facts) -> None:
        """Take one thing away from the full engine at a time."""
        job = self.job(2048, warmup=0)
        attempt = self.suite.attempt
        attempt(facts, "warm_up", partial(self.programs.ours, OPT, job))
        before = attempt(facts, "full_engine", partial(self.programs.ours, OPT, job))
        for name, switch in LADDER.items():
            attempt(facts, name, partial(self.programs.ours, OPT, {**job, **switch}))
        after = attempt(facts, "full_engine_again", partial(self.programs.ours, OPT, job))
        full = mean(value(before), value(after))
        for name in LADDER:
            judge(facts, name, divide(value(facts[name]), full))


def other(*, at_least: float | None = None, **changes: str) -> Callable[[Gpu, Facts], None]:
    """Return a section that captions greedily with another model, or with the same one in other numbers."""

    def section(gpu: Gpu, facts: Facts) -> None:
        if changes.get("quantize") == "fp8" and find_spec("torchao") is None:
            raise SkipError("torchao is not installed")
        facts |= gpu.programs.ours({**OPT, **changes}, gpu.job(NUM_IMAGES if "quantize" in changes else 2048))
        judge(facts, "images_per_s", value(facts), at_least=at_least)

    return section


SECTIONS: dict[str, Callable[[Gpu, Facts], None]] = {
    "opt-2.7b": Gpu.opt,
    "beams": Gpu.beams,
    "questions": Gpu.questions,
    "12mp": Gpu.large,
    "fp8": other(quantize="fp8", at_least=900),
    "peers": Gpu.peers,
    "ladder": Gpu.ladder,
    "int8-dynamic": other(quantize="int8-dynamic"),
    "flan-t5-xl": other(name="Salesforce/blip2-flan-t5-xl"),
    "opt-6.7b": other(name="Salesforce/blip2-opt-6.7b"),
}
"""First those with a figure to reach; those with one model follow each other, so that it is loaded once."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure everything."""
    arguments(__doc__, list(SECTIONS), argv)  # --help, and wrong options, need no GPU
    import torch

    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU: nothing was measured, and nothing written.", file=sys.stderr)
        return 2
    return run(__doc__, "cuda", SECTIONS, Gpu, argv)


if __name__ == "__main__":
    sys.exit(main())
