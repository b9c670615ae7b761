"""Captions against references: the metrics of the COCO caption evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from blip2cap.errors import InputError, UsageError
from blip2cap.evaluate.bleu import bleu
from blip2cap.evaluate.cider import cider_d
from blip2cap.evaluate.java import JAVA_METRICS, meteor, spice, why_no_java
from blip2cap.evaluate.metric import Metric
from blip2cap.evaluate.ngrams import make_corpus
from blip2cap.evaluate.ptb import tokenize
from blip2cap.evaluate.rouge import rouge_l

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
"""Metrics that need nothing but this package."""


def score_captions(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, metrics: Sequence[str] = METRICS
) -> list[Metric]:
    """Score one caption of each image against its references; return the metrics in the order of `metrics`.

    Texts are as people or models wrote them: they are split into words here. Raises UsageError for an unknown metric,
    or one that lacks Java; InputError if there is no caption, or one without a reference.
    """
    unknown = [name for name in metrics if name not in (*METRICS, *JAVA_METRICS)]
    if unknown:
        raise UsageError(f"--metrics {', '.join(unknown)}: must be of {', '.join((*METRICS, *JAVA_METRICS))}.")
    lacking = why_no_java() if any(name in JAVA_METRICS for name in metrics) else None
    if lacking:
        raise UsageError(lacking)
    if not candidates or len(candidates) != len(references) or not all(references):
        raise InputError(
            f"{len(candidates)} captions, {sum(map(bool, references))} images with references: "
            "every caption needs one reference or more, and there must be a caption. Leave out the others."
        )
    own = tokenize(candidates)
    words = iter(tokenize(text for texts in references for text in texts))
    others = [list(islice(words, len(texts))) for texts in references]
    corpus = make_corpus(own, others)
    found: dict[str, Metric] = {}
    if any(name.startswith("BLEU") for name in metrics):
        found |= {metric.name: metric for metric in bleu(corpus)}
    if "CIDEr-D" in metrics:
        found["CIDEr-D"] = cider_d(corpus)
    scorers = {"ROUGE-L": rouge_l, "METEOR": meteor, "SPICE": spice}
    found |= {name: score(own, others) for name, score in scorers.items() if name in metrics}
    return [found[name] for name in metrics]
