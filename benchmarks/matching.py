"""Matching and embedding at full size on a CPU, beside the transformers class.

    PYTHONPATH=. python benchmarks/matching.py --out benchmarks/results/matching.json

One process for each dtype, in which ours and the class run in turns; see match_loop.py. Ratios are of processor time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.suite import Section, divide, main

NUM_IMAGES = 4


def section_of(dtype: str) -> Callable[[Section], None]:
    """Return the section of a dtype."""

    def measure(section: Section) -> None:
        images = section.pictures.scenes(NUM_IMAGES)
        facts = section.peer("match_loop", "benchmarks.match_loop", images=images, dtype=dtype, limit=NUM_IMAGES)
        seconds = facts.get("cpu_seconds", {}).get  # of all cores: other work on the machine changes it less

        def ratio(one: str, other: str) -> float | None:
            return divide(seconds(one), seconds(other))

        section.judge("times_one_text_for_8", ratio("ours_8_texts", "ours_1_text"), at_most=1.5)
        section.judge("match_times_transformers", ratio("transformers_1_text", "ours_1_text"), at_least=1)
        section.judge("match_times_transformers_itm_alone", ratio("transformers_1_text_itm_alone", "ours_1_text"))
        section.judge("embed_times_transformers", ratio("transformers_embed", "ours_embed"), at_least=1)

    return measure


SECTIONS = {dtype: section_of(dtype) for dtype in ("float32", "bfloat16")}

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, None))
