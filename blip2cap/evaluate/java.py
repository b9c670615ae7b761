"""METEOR and SPICE: the programs that pycocoevalcap brings, for which there must be a Java runtime.

SPICE downloads the models of CoreNLP at its first use, into pycocoevalcap's folder; its libraries are of the time of
Java 8.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from blip2cap.errors import UsageError
from blip2cap.evaluate.metric import Floats, Metric, make_mean, make_metric

JAVA_METRICS = ("METEOR", "SPICE")

_PRECISION_WEIGHT, _FRAGMENT_POWER, _FRAGMENT_WEIGHT, _CONTENT_WEIGHT = 0.85, 0.2, 0.6, 0.75
_MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
"""Weights of equal words, stems, synonyms and paraphrases. They and those above are METEOR 1.5's for English
(Denkowski and Lavie 2014)."""
_NUM_STATISTICS = 23
_LENGTH, _REFERENCE_LENGTH, _FUNCTION_WORDS, _REFERENCE_FUNCTION_WORDS, _CHUNKS = 0, 1, 2, 3, 20
_MATCHES, _REFERENCE_MATCHES = 21, 22


def why_no_java() -> str | None:
    """Return what METEOR and SPICE lack on this machine, with the next step; None if nothing."""
    if shutil.which("java") is None:
        return "METEOR and SPICE are Java programs, and there is no `java` on the PATH. Install a Java runtime."
    if find_spec("pycocoevalcap") is None:
        return "METEOR and SPICE come with pycocoevalcap. Install it: pip install 'blip2cap[java]'."
    return None


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Metric:
    """Score tokenised candidates with METEOR 1.5: from 0 to 1. Takes a minute, and 2 GB of memory."""
    lines = [f"SCORE ||| {' ||| '.join((*texts, text))}\n" for text, texts in zip(candidates, references, strict=True)]
    command = [
        "java",
        "-Dfile.encoding=UTF-8",
        "-Xmx2G",
        "-jar",
        "meteor-1.5.jar",
        "-",
        "-",
        "-stdio",
        "-l",
        "en",
        "-norm",
    ]
    done = subprocess.run(
        command, cwd=_folder("meteor"), input="".join(lines).encode(), capture_output=True, check=False
    )
    found = [line.split() for line in done.stdout.decode().splitlines()]
    if len(found) != len(lines) or any(len(numbers) != _NUM_STATISTICS for numbers in found):
        raise UsageError(_failure("METEOR", done.stderr.decode(errors="replace")))
    statistics = np.array(found, dtype=np.float64)
    scores = _meteor_score(statistics)
    # A text that is all of its reference adds no chunk to the sums, as in METEOR's own.
    statistics[_is_whole(statistics), _CHUNKS] = 0
    return make_metric("METEOR", statistics, lambda sums: float(_meteor_score(sums)), scores)


def _meteor_score(statistics: Floats) -> Floats:
    """Return the scores for statistics of items or of all of them, [..., statistics] -> [...]."""
    matches = statistics[..., 4:20].reshape(*statistics.shape[:-1], len(_MATCH_WEIGHTS), 4)
    content, function = matches[..., :2], matches[..., 2:]
    weighted = _MATCH_WEIGHTS @ (_CONTENT_WEIGHT * content + (1 - _CONTENT_WEIGHT) * function)
    lengths = statistics[..., [_LENGTH, _REFERENCE_LENGTH]]
    num_function = statistics[..., [_FUNCTION_WORDS, _REFERENCE_FUNCTION_WORDS]]
    totals = _CONTENT_WEIGHT * (lengths - num_function) + (1 - _CONTENT_WEIGHT) * num_function
    precision, recall = np.moveaxis(_divide(weighted, totals), -1, 0)
    mean = _divide(precision * recall, _PRECISION_WEIGHT * precision + (1 - _PRECISION_WEIGHT) * recall)
    num_matches = (statistics[..., _MATCHES] + statistics[..., _REFERENCE_MATCHES]) / 2
    chunks = np.where(_is_whole(statistics), 0, statistics[..., _CHUNKS])
    return np.asarray(mean * (1 - _FRAGMENT_WEIGHT * _divide(chunks, num_matches) ** _FRAGMENT_POWER))


def _is_whole(statistics: Floats) -> Floats:
    """Return where all words match in one piece."""
    matches = statistics[..., [_MATCHES, _REFERENCE_MATCHES]] == statistics[..., [_LENGTH, _REFERENCE_LENGTH]]
    return np.asarray((statistics[..., _CHUNKS] == 1) & matches.all(axis=-1))


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Return the quotient, 0 where the denominator is."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Metric:
    """Score tokenised candidates with SPICE 1.0: from 0 to 1. Takes 8 GB of memory."""
    from pycocoevalcap.spice.spice import Spice  # type: ignore[import-untyped]

    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints the progress of downloads
            _, found = Spice().compute_score(
                dict(enumerate(references)), {i: [text] for i, text in enumerate(candidates)}
            )
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(_failure("SPICE", str(error))) from error
    return make_mean("SPICE", np.array([scores["All"]["f"] for scores in found]))


def _folder(name: str) -> Path:
    """Return a folder of pycocoevalcap, which is installed."""
    spec = find_spec("pycocoevalcap")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / name


def _failure(name: str, output: str) -> str:
    lines = output.strip().splitlines() or ["it said nothing"]
    return f"--metrics {name}: its program failed: {lines[-1]}. Leave {name} out, or try another version of Java."
