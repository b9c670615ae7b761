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
from blip2cap.records import Generated, Prompt, Turn
from blip2cap.tiny.scenes import VALIDATION_SEEDS, Question, Scene
from blip2cap.train.drawn_files import drawn_files

_BATCH = 50
_NUM_TURNS = 3
"""Number of questions in a conversation."""


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
    answers_in_conversations: float
    """Share of exact answers to the later questions of conversations, which follow the model's own earlier answers."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def measure(model: Blip2, *, num_scenes: int, num_questions: int, first_seed: int = VALIDATION_SEEDS.start) -> Accuracy:
    """Caption `num_scenes` unseen scenes, read from JPEG files, and answer `num_questions` questions, greedily.

    There is a conversation about each of them too.
    """
    captions: list[tuple[str, str]] = []
    prompted: list[tuple[str, str]] = []
    answers: list[tuple[Question, str]] = []
    later: list[tuple[Question, str]] = []
    scenes = drawn_files(range(first_seed, first_seed + num_scenes), model.image_size)
    per_scene = -(-num_questions // num_scenes)
    while batch := list(islice(scenes, _BATCH)):
        features = model.encode([pixels for _, _, pixels in batch])
        for prompt, pairs in (("", captions), ("a photo of", prompted)):
            prompts = [Prompt(image=index, text=prompt, name="") for index in range(len(batch))]
            texts = _texts(model.generate(features, prompts, GenerateOptions(), capacity=_BATCH))
            pairs += [(scene.caption, text) for (_, scene, _), text in zip(batch, texts, strict=True)]
        questions = [
            (index, question, ())
            for index, (seed, scene, _) in enumerate(batch)
            for question in random.Random(f"questions {seed}").sample(
                scene.questions, min(per_scene, len(scene.questions))
            )
        ]
        answers += _ask(model, features, questions)
        later += _converse(model, features, [(seed, scene) for seed, scene, _ in batch])
    return score(captions, prompted, answers[:num_questions], later)


def _ask(
    model: Blip2, features: Any, questions: Sequence[tuple[int, Question, tuple[Turn, ...]]]
) -> list[tuple[Question, str]]:
    """Return questions about images, by their indices, with answers; each is asked after earlier turns."""
    template = Template(FAMILIES[model.checkpoint.family].vqa_template, question=True)
    prompts = [
        Prompt(image=index, text=template.fill("", question.text), name="", question=question.text, turns=turns)
        for index, question, turns in questions
    ]
    options = GenerateOptions(max_new_tokens=ANSWER_NEW_TOKENS)
    texts = _texts(model.generate(features, prompts, options, capacity=_BATCH))
    return [(question, text) for (_, question, _), text in zip(questions, texts, strict=True)]


def _converse(model: Blip2, features: Any, scenes: Sequence[tuple[int, Scene]]) -> list[tuple[Question, str]]:
    """Return the questions of a conversation about each scene, with answers, without the first."""
    chosen = [random.Random(f"conversation {seed}").sample(scene.questions, _NUM_TURNS) for seed, scene in scenes]
    turns: list[tuple[Turn, ...]] = [()] * len(chosen)
    later: list[tuple[Question, str]] = []
    for number in range(_NUM_TURNS):
        questions = [(index, each[number], turns[index]) for index, each in enumerate(chosen)]
        answers = _ask(model, features, questions)
        turns = [
            (*before, Turn(question=question.text, answer=text))
            for before, (question, text) in zip(turns, answers, strict=True)
        ]
        later += answers if number else []
    return later


def _texts(results: Sequence[list[Generated] | Exception]) -> list[str]:
    return [result[0].text for result in results if isinstance(result, list)]


def score(
    captions: Sequence[tuple[str, str]],
    prompted: Sequence[tuple[str, str]],
    answers: Sequence[tuple[Question, str]],
    later: Sequence[tuple[Question, str]],
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
        answers_in_conversations=_share([question.answer == text for question, text in later]),
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
