"""Accuracy of a captioner on unseen scenes, with the image decoder that users' files are read with."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from blip2cap.generate_options import ANSWER_NEW_TOKENS, GenerateOptions
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.registry import FAMILIES
from blip2cap.prompts import Template
from blip2cap.records import Generated, Prompt
from blip2cap.tiny.scenes import VALIDATION_SEEDS, Question
from blip2cap.train.drawn_files import drawn_files

_BATCH = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Accuracy of captions and answers, as shares from 0 to 1."""

    num_captions: int
    captions_exact: float
    prompted_captions_exact: float
    """Captions that continue the prompt "a photo of"."""
    wrong_captions_by_words: dict[int, int]
    """Number of words that differ, are missing or too many -> number of captions."""
    num_questions: int
    answers_exact: float
    by_type: dict[str, float]
    """Share of exact answers, by type of question."""
    by_answer: dict[str, float]
    """Share of exact answers, by true answer."""
    asked: dict[str, int]
    """Number of questions, by true answer."""
    yes_share: float
    """Share of yes among the generated answers to "is there" questions."""
    true_yes_share: float
    """Share of yes among the true answers to them."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def measure(model: Blip2, *, num_scenes: int, num_questions: int, first_seed: int = VALIDATION_SEEDS.start) -> Accuracy:
    """Caption `num_scenes` unseen scenes, read from JPEG files, and answer `num_questions` questions, greedily."""
    captions: list[tuple[str, str]] = []
    prompted: list[tuple[str, str]] = []
    answers: list[tuple[Question, str]] = []
    scenes = drawn_files(range(first_seed, first_seed + num_scenes), model.image_size)
    template = Template(FAMILIES[model.checkpoint.family].vqa_template, question=True)
    per_scene = -(-num_questions // num_scenes)
    while batch := list(islice(scenes, _BATCH)):
        features = model.encode([pixels for _, _, pixels in batch])
        for prompt, pairs in (("", captions), ("a photo of", prompted)):
            prompts = [Prompt(image=index, text=prompt, name="") for index in range(len(batch))]
            texts = _texts(model.generate(features, prompts, GenerateOptions(), capacity=_BATCH))
            pairs += [(scene.caption, text) for (_, scene, _), text in zip(batch, texts, strict=True)]
        questions = [
            (index, question)
            for index, (seed, scene, _) in enumerate(batch)
            for question in random.Random(f"questions {seed}").sample(
                scene.questions, min(per_scene, len(scene.questions))
            )
        ]
        prompts = [Prompt(image=index, text=template.fill("", q.text), name="") for index, q in questions]
        options = GenerateOptions(max_new_tokens=ANSWER_NEW_TOKENS)
        texts = _texts(model.generate(features, prompts, options, capacity=_BATCH))
        answers += [(question, text) for (_, question), text in zip(questions, texts, strict=True)]
    return score(captions, prompted, answers[:num_questions])


def _texts(results: Sequence[list[Generated] | Exception]) -> list[str]:
    return [result[0].text for result in results if isinstance(result, list)]


def score(
    captions: Sequence[tuple[str, str]], prompted: Sequence[tuple[str, str]], answers: Sequence[tuple[Question, str]]
) -> Accuracy:
    """Compare pairs of a true text, or a question, and the generated text."""
    wrong = Counter(differing_words(true, text) for true, text in captions if true != text)
    types = sorted({question.type for question, _ in answers})
    trues = sorted({question.answer for question, _ in answers})
    is_there = [(question.answer, text) for question, text in answers if question.type == "is_there"]
    return Accuracy(
        num_captions=len(captions),
        captions_exact=_share([true == text for true, text in captions]),
        prompted_captions_exact=_share([true == text for true, text in prompted]),
        wrong_captions_by_words=dict(sorted(wrong.items())),
        num_questions=len(answers),
        answers_exact=_share([question.answer == text for question, text in answers]),
        by_type={t: _share([q.answer == text for q, text in answers if q.type == t]) for t in types},
        by_answer={t: _share([q.answer == text for q, text in answers if q.answer == t]) for t in trues},
        asked=dict(Counter(question.answer for question, _ in answers).most_common()),
        yes_share=_share([text == "yes" for _, text in is_there]),
        true_yes_share=_share([true == "yes" for true, _ in is_there]),
    )


def _share(right: Sequence[bool]) -> float:
    return round(sum(right) / max(1, len(right)), 4)


def differing_words(true: str, text: str) -> int:
    """Return the number of words to change, add or remove (Levenshtein distance over words)."""
    previous = list(range(len(text.split()) + 1))
    for row, word in enumerate(true.split(), start=1):
        current = [row]
        for column, other in enumerate(text.split(), start=1):
            cost = min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (word != other))
            current.append(cost)
        previous = current
    return previous[-1]
