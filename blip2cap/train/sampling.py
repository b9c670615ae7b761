"""Captions or answers about fixed images of the validation set, while a model trains."""

from __future__ import annotations

from typing import Any, cast

from blip2cap.errors import ImageError
from blip2cap.generate_options import ANSWER_NEW_TOKENS, GenerateOptions
from blip2cap.models.base import TextModel
from blip2cap.records import Prompt
from blip2cap.train.data.collate import Prompts
from blip2cap.train.data.dataset import Sample
from blip2cap.train.prepare import Prepared, TrainJob


class Sampler:
    """Lets the model speak about the first images of the validation set, greedily."""

    def __init__(self, prepared: Prepared, job: TrainJob) -> None:
        self._prepared, self._task = prepared, job.task
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
        val = self._prepared.val
        assert val is not None
        samples = [val[position] for position in self._positions]
        trainee = self._prepared.trainee
        with trainee.in_one_dtype():
            results = self._results(cast(TextModel, trainee.captioner()), samples)
        rows = []
        for sample, result in zip(samples, results, strict=True):
            example = val.data.examples[sample.index]
            text = str(result) if isinstance(result, ImageError) else result[0].text
            question = {} if sample.question is None else {"question": sample.question}
            rows.append({"image": example.name, **question, "text": text, "expected": sample.target})
        return rows

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
