"""Metrics of captions: time for 5,000 images with 5 references each, beside pycocoevalcap on the same texts.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/evaluate.py --out benchmarks/results/evaluate.json

Texts are drawn: 8 to 14 words, the frequency of a word falling with its rank as in natural texts. Times are CPU times
of one process, the median of three runs, as other programs on the machine change them less; but for Stanford's
tokenizer, a process of its own, whose wall time is given.
"""

from __future__ import annotations

import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from benchmarks.suite import Facts, Section, main
from blip2cap.bench.programs import SkipError
from blip2cap.evaluate import ptb
from blip2cap.evaluate.bleu import bleu
from blip2cap.evaluate.captions import METRICS, score_captions
from blip2cap.evaluate.cider import cider_d
from blip2cap.evaluate.ngrams import make_corpus
from blip2cap.evaluate.rouge import rouge_l

NUM_IMAGES, NUM_REFERENCES, NUM_WORDS = 5000, 5, 8000
NUM_RESAMPLES = 1000


def draw_captions() -> tuple[list[str], list[list[str]]]:
    """Return captions and the references of each."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(NUM_WORDS)]
    weights = [1 / rank for rank in range(1, NUM_WORDS + 1)]
    texts = [
        " ".join(draw.choices(words, weights, k=draw.randint(8, 14))).capitalize() + "."
        for _ in range(NUM_IMAGES * (1 + NUM_REFERENCES))
    ]
    rest = iter(texts[NUM_IMAGES:])
    return texts[:NUM_IMAGES], [[next(rest) for _ in range(NUM_REFERENCES)] for _ in range(NUM_IMAGES)]


def captions(section: Section) -> None:
    """Measure every metric, and all with splitting into words."""
    candidates, references = draw_captions()
    own = ptb.tokenize(candidates)
    others = [ptb.tokenize(texts) for texts in references]

    def cider_alone() -> float:
        return cider_d(make_corpus(own, others)).value

    ours = section.attempt(
        "ours",
        lambda: {
            "split_into_words_s": cpu_s(lambda: split_anew(candidates, references)),
            "bleu_s": cpu_s(lambda: bleu(make_corpus(own, others))),
            "rouge_l_s": cpu_s(lambda: rouge_l(own, others)),
            "cider_d_s": cpu_s(cider_alone),
            "all_with_words_s": cpu_s(lambda: score_anew(candidates, references)),
            "resamples_s": cpu_s(lambda: resample(candidates, references)),
        },
    )
    theirs = section.attempt("pycocoevalcap", _theirs, own, others, cider_alone())
    section.attempt("stanford", _stanford, candidates, references, own, others)
    section.judge("cider_d_s", ours["cider_d_s"], at_most=1.5)
    section.judge("cider_d_times_faster", theirs["cider_d_s"] / ours["cider_d_s"])


def cpu_s(run: Callable[[], Any], num_runs: int = 3) -> float:
    """Return the CPU time of a run: the median of several."""
    times = []
    for _ in range(num_runs):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return round(statistics.median(times), 3)


def split_anew(candidates: list[str], references: list[list[str]]) -> None:
    """Split all texts, as if none had been split before."""
    ptb._words_of_part.cache_clear()
    ptb.tokenize([*candidates, *(text for texts in references for text in texts)])


def score_anew(candidates: list[str], references: list[list[str]]) -> None:
    """Compute all metrics, as if no text had been split before."""
    ptb._words_of_part.cache_clear()
    score_captions(candidates, references, metrics=METRICS)


def resample(candidates: list[str], references: list[list[str]]) -> None:
    """Compute all metrics over samples, as a bootstrap does, and once over all."""
    generator = np.random.default_rng(0)
    metrics = score_captions(candidates, references)
    for _ in range(NUM_RESAMPLES):
        sample = generator.integers(NUM_IMAGES, size=NUM_IMAGES)
        for metric in metrics:
            metric.resample(sample)


def _theirs(own: list[str], others: list[list[str]], our_cider: float) -> Facts:
    texts = dict(enumerate(others)), {number: [text] for number, text in enumerate(own)}
    value, _ = Cider().compute_score(*texts)
    return {
        "bleu_s": cpu_s(lambda: Bleu(4).compute_score(*texts, verbose=0), 1),
        "rouge_l_s": cpu_s(lambda: Rouge().compute_score(*texts), 1),
        "cider_d_s": cpu_s(lambda: Cider().compute_score(*texts), 1),
        "difference_of_cider_d": abs(our_cider - float(value)),
    }


def _stanford(candidates: list[str], references: list[list[str]], own: list[str], others: list[list[str]]) -> Facts:
    if shutil.which("java") is None:
        raise SkipError("there is no Java runtime")
    texts = [*candidates, *(text for texts in references for text in texts)]
    started = time.monotonic()
    (words,) = PTBTokenizer().tokenize({"all": [{"caption": text} for text in texts]}).values()
    seconds = time.monotonic() - started
    ours = [*own, *(text for texts in others for text in texts)]
    num_equal = sum(one == other for one, other in zip(words, ours, strict=True))
    return {"split_into_words_s": round(seconds, 2), "share_of_equal_lines": num_equal / len(ours)}


SECTIONS = {"captions": captions}

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, None))
