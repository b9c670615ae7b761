"""Captions or answers about the validation set, while a model trains: samples to read, and their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from blip2cap.errors import ImageError
from blip2cap.evaluate.captions import score_captions
from blip2cap.evaluate.vqa import is_right
from blip2cap.generate_options import ANSWER_NEW_TOKENS, GenerateOptions
from blip2cap.models.base import TextModel
from blip2cap.records import Prompt
from blip2cap.train.data.collate import Prompts
from blip2cap.train.data.dataset import Sample
from blip2cap.train.data.example import Example
from blip2cap.train.prepare import Prepared, TrainJob

_BATCH = 64
"""Number of examples whose images are in memory at once."""
TASKS = {"cider": ("caption", "stage2"), "exact-match": ("vqa",)}
"""Trainings that each metric of texts is for."""


class Sampler:
    """Lets the model speak about images of the validation set, greedily."""

    def __init__(self, prepared: Prepared, job: TrainJob) -> None:
        self._prepared, self._task, self._best_by = prepared, job.task, job.loop.best_by
        val = prepared.val
        self._positions = range(min(job.loop.num_samples, len(val))) if val is not None else range(0)
        if self._task != "stage1":
            self._prompts = Prompts(prepared.base, prompt=job.data.prompt, template=job.data.template)

    def sample(self) -> list[dict[str, str]]:
        """Return image, question, generated text and expected text of each; none in stage 1, which makes no captioner.

        The network must be in eval mode.
        """
        if self._task == "stage1" or not self._positions:
            return []
        rows = []
        for sample, text in self._texts(self._positions):
            example = self._examples[sample.index]
            question = {} if sample.question is None else {"question": sample.question}
            rows.append({"image": example.name, **question, "text": text, "expected": sample.target})
        return rows

    def scores(self) -> dict[str, float]:
        """Return the metric of --best-by for texts about all of the validation set, by its name; not for the loss.

        A caption is compared with all of its image, an answer with those to its question. The network must be in eval
        mode.
        """
        if self._best_by == "exact-match":
            right = [
                is_right(text, self._examples[sample.index].texts)
                for sample, text in self._texts(range(len(self._examples)))
            ]
            return {"exact_match": sum(right) / len(right)}
        captions: dict[str, list[str]] = {}
        first: dict[str, int] = {}
        for position, each in enumerate(self._examples):
            captions.setdefault(each.path, []).extend(each.texts)
            first.setdefault(each.path, position)
        texts = [text for _, text in self._texts([*first.values()])]
        (metric,) = score_captions(texts, [*captions.values()], metrics=("CIDEr-D",))
        return {"cider": metric.value}

    @property
    def _examples(self) -> Sequence[Example]:
        assert self._prepared.val is not None
        return self._prepared.val.data.examples

    def _texts(self, positions: Sequence[int]) -> Iterator[tuple[Sample, str]]:
        """Yield samples of the validation set with their texts, or the reasons why there are none."""
        trainee, val = self._prepared.trainee, self._prepared.val
        assert val is not None
        with trainee.in_one_dtype():
            model = cast(TextModel, trainee.captioner())
            for start in range(0, len(positions), _BATCH):
                samples = [val[position] for position in positions[start : start + _BATCH]]
                for sample, result in zip(samples, self._results(model, samples), strict=True):
                    yield sample, str(result) if isinstance(result, ImageError) else result[0].text

    def _results(self, model: TextModel, samples: list[Sample]) -> list[Any]:
        """Return the result of each sample: generated texts, or an ImageError."""
        options = GenerateOptions(max_new_tokens=ANSWER_NEW_TOKENS) if self._task == "vqa" else GenerateOptions()
        session = model.start_texts(options, capacity=None)
        features = session.encode([sample.pixels.permute(1, 2, 0).numpy() for sample in samples])
        prompts = [
            Prompt(image=number, text=self._prompts.of(sample), name="") for number, sample in enumerate(samples)
        ]
        tickets, results = session.add(features, prompts), dict[int, Any]()
        while session.num_pending:
            results.update(session.advance())
        return [results[ticket] for ticket in tickets]
