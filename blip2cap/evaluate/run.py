"""Evaluates an output, and another one to compare it with: captions, answers, or an index of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from blip2cap.errors import InputError, UsageError
from blip2cap.evaluate.answers import evaluate_answers
from blip2cap.evaluate.captions import METRICS, score_captions
from blip2cap.evaluate.entries import Entries, Entry, read_output, read_references
from blip2cap.evaluate.evaluation import Evaluation, Item
from blip2cap.evaluate.itm import Captioned, evaluate_itm, load_model
from blip2cap.evaluate.pairs import Pair, Pairs, pair
from blip2cap.evaluate.pictures import Pictures
from blip2cap.evaluate.retrieval import evaluate_retrieval, make_task
from blip2cap.index.catalog import NAME as INDEX_JSON
from blip2cap.index.index import Index
from blip2cap.index.searcher import Searcher
from blip2cap.jobs.job import Listener
from blip2cap.options import DEFAULT_MATCHING_MODEL, DecodeOptions, ModelOptions
from blip2cap.records import ImageRef

_MAIN = "CIDEr-D"
"""Metric whose scores of single captions choose the worst."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationJob:
    """Everything that defines an evaluation. Raises UsageError for options that exclude each other."""

    output: str
    """Output of `caption` or `vqa`, a list of results, or the folder of an index."""
    references: tuple[str, ...] = ()
    compare: str | None = None
    """Another output of the same kind, evaluated on the same items."""
    only_matched: bool = False
    """Evaluate what both sides have, instead of an error."""
    metrics: tuple[str, ...] = ()
    """Metrics of captions in addition to those that need no Java."""
    itm: bool = False
    """Score captions by a matching model, without references."""
    rerank: int | None = None
    model_name: str | None = None
    """Matching model, or the one of an index that was moved."""
    model: ModelOptions
    """Dtype and device of the matching model."""
    images: str | None = None
    """Folder of the images; None: the folder that the run has read."""
    decode: DecodeOptions

    def __post_init__(self) -> None:
        if self.itm and (self.references or self.is_index):
            other = "an index" if self.is_index else "--references"
            raise UsageError(f"--itm and {other} exclude each other: it scores captions without references.")
        if not self.itm and not self.references:
            raise UsageError(
                "nothing to compare with: give --references FILE, or --itm to score captions by a matching model."
            )
        if self.metrics and (self.itm or self.is_index):
            raise UsageError(f"--metrics {' '.join(self.metrics)}: is for captions with references. Leave it out.")
        if self.rerank is not None and not self.is_index:
            raise UsageError(f"--rerank {self.rerank}: is for an index, {self.output} is none. Leave it out.")
        if self.model_name is not None and not (self.itm or self.is_index):
            raise UsageError(f"--model {self.model_name}: no model is needed here. Leave it out, or add --itm.")

    @property
    def is_index(self) -> bool:
        """True if the output is an index of images."""
        return os.path.isfile(os.path.join(self.output, INDEX_JSON))


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """Result of a job."""

    own: Evaluation
    other: Evaluation | None
    """Result of the output to compare with, for the same items."""
    by: str
    """Key by which outputs and references were paired: "file name"; "" without references."""
    left_out: str
    """Message about entries that were left out, as only one side has them; "" if there is none."""


class Evaluator:
    """Runs jobs."""

    def __init__(self, job: EvaluationJob, *, listener: Listener | None = None) -> None:
        self.job, self.listener = job, listener or Listener()
        self._outputs: dict[str, Entries] = {}
        """Outputs so far, by their names: standard input can be read only once."""

    def run(self) -> Evaluated:
        """Evaluate. Raises Blip2CapError: InputError where entries have no partner."""
        if self.job.itm:
            return self._itm()
        return self._retrieval() if self.job.is_index else self._texts()

    def refs(self, evaluation: Evaluation) -> list[ImageRef]:
        """Return the images of an evaluation, for a sheet. Raises InputError if they have no names."""
        if evaluation.refs:
            return [*evaluation.refs]
        return self._refs(self._output(evaluation.given), [item.image for item in evaluation.items])

    def _texts(self) -> Evaluated:
        references = read_references(self.job.references)
        outputs = [self._output(each) for each in self._given]
        found = self._paired(outputs, references)
        results = []
        for output, pairs in zip(outputs, found, strict=True):
            if not output.are_answers:
                results.append(evaluate_captions(output.given, pairs.pairs, self.job.metrics))
            elif self.job.metrics:
                raise UsageError(f"--metrics: is for captions, {output.given} has answers. Leave it out.")
            else:
                results.append(evaluate_answers(output.given, pairs.pairs))
        return _evaluated(results, found)

    def _retrieval(self) -> Evaluated:
        job = self.job
        references = read_references(job.references)
        searchers = [self._searcher(each) for each in self._given]
        found = self._paired([_images_of(each.index) for each in searchers], references)
        results = [
            evaluate_retrieval(
                given,
                searcher,
                make_task([(each.own.image, each.reference.texts) for each in pairs.pairs]),
                rerank=job.rerank,
                decode=job.decode,
                listener=self.listener,
            )
            for given, searcher, pairs in zip(self._given, searchers, found, strict=True)
        ]
        return _evaluated(results, found)

    def _itm(self) -> Evaluated:
        outputs = [self._output(each) for each in self._given]
        for output in outputs:
            if output.are_answers:
                raise InputError(f"{output.given} has answers. Expected captions: --itm reads a caption and the image.")
            if not any(entry.texts for entry in output.entries):
                raise InputError(f"{output.given}: all of its rows have failed, there is no caption in it.")
        chosen = [[entry for entry in output.entries if entry.texts] for output in outputs]
        pairs = None
        if len(outputs) > 1:
            pairs = pair(*outputs, only_matched=self.job.only_matched)
            chosen = [[each.own for each in pairs.pairs], [each.reference for each in pairs.pairs]]
        refs = [
            self._refs(output, [entry.image for entry in some]) for output, some in zip(outputs, chosen, strict=True)
        ]
        name = self.job.model_name or DEFAULT_MATCHING_MODEL
        model = load_model(replace(self.job.model, name=name), self.listener)
        results = [
            evaluate_itm(
                output.given,
                [
                    Captioned(ref=ref, item=Item(image=entry.image, text=entry.texts[0], references=()))
                    for ref, entry in zip(some_refs, some, strict=True)
                ],
                model=model,
                decode=self.job.decode,
                listener=self.listener,
            )
            for output, some_refs, some in zip(outputs, refs, chosen, strict=True)
        ]
        if len({len(each.items) for each in results}) > 1:
            raise InputError("images of one of the outputs cannot be read: there is nothing to compare. See above.")
        return Evaluated(
            own=results[0],
            other=results[1] if pairs else None,
            by="",
            left_out=pairs.left_out if pairs else _failed(outputs[0]),
        )

    def _output(self, given: str) -> Entries:
        if given not in self._outputs:
            self._outputs[given] = read_output(given)
        return self._outputs[given]

    @property
    def _given(self) -> tuple[str, ...]:
        return (self.job.output,) if self.job.compare is None else (self.job.output, self.job.compare)

    def _paired(self, outputs: Sequence[Entries], references: Entries) -> list[Pairs]:
        """Pair each output with the references; several with those that all have."""
        found = [pair(each, references, only_matched=self.job.only_matched) for each in outputs]
        common = set.intersection(*({id(each.reference) for each in pairs.pairs} for pairs in found))
        if not common:
            raise InputError(f"{' and '.join(self._given)} have nothing in common that has references.")
        return [_limited(pairs, common) for pairs in found]

    def _searcher(self, index: str) -> Searcher:
        job = self.job
        opened = Index.open(index)
        if not opened.num_images:
            raise InputError(f"{index}: has no images. Add some: run `blip2cap index` with a folder.")
        return Searcher(opened, name=job.model_name, model=job.model, decode=job.decode, say=self.listener.say)

    def _refs(self, output: Entries, names: Sequence[str]) -> list[ImageRef]:
        if not all(names):
            raise InputError(f"{output.given}: names no images, only ids. Give an output with file names.")
        root = output.root if self.job.images is None else self.job.images
        pictures = Pictures(root, output.image_column)
        return [pictures.ref(name) for name in names]


def evaluate_captions(given: str, pairs: Sequence[Pair], more: Sequence[str] = ()) -> Evaluation:
    """Score one caption of each image against its references; `more` are metrics that need Java.

    Raises UsageError for an unknown metric, or one that cannot be computed here.
    """
    candidates, references = [each.own.texts[0] for each in pairs], [each.reference.texts for each in pairs]
    metrics = score_captions(candidates, references, metrics=tuple(dict.fromkeys((*METRICS, *more))))
    scores = next(metric.per_item for metric in metrics if metric.name == _MAIN)
    assert scores is not None
    return Evaluation(
        given=given,
        noun="caption",
        items=tuple(Item(image=each.image, text=each.own.texts[0], references=each.reference.texts) for each in pairs),
        metrics=tuple(metrics),
        score_name=_MAIN,
        item_scores=scores,
    )


def _failed(output: Entries) -> str:
    """Return how many rows of an output have no caption; "" if all have one."""
    num_failed = sum(not entry.texts for entry in output.entries)
    return f"{output.given}: {num_failed:,} of {len(output.entries):,} rows, which have failed" if num_failed else ""


def _images_of(index: Index) -> Entries:
    entries = tuple(Entry(image=name, texts=(name,)) for name in index.names)
    return Entries(given=str(index.folder), entries=entries, have_texts=False)


def _limited(pairs: Pairs, references: set[int]) -> Pairs:
    return replace(pairs, pairs=tuple(each for each in pairs.pairs if id(each.reference) in references))


def _evaluated(results: Sequence[Evaluation], found: Sequence[Pairs]) -> Evaluated:
    left_out = "; ".join(
        f"{result.given}: {pairs.left_out}" for result, pairs in zip(results, found, strict=True) if pairs.left_out
    )
    return Evaluated(own=results[0], other=results[1] if len(results) > 1 else None, by=found[0].by, left_out=left_out)
