"""How often a model is right about scenes it has never seen, through the decoder that users' files go through."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from blip2cap.decode.image import Pixels, decode
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.registry import FAMILIES
from blip2cap.options import ANSWER_NEW_TOKENS, DecodeOptions, GenerateOptions
from blip2cap.prompts import Template
from blip2cap.records import Generated, Prompt
from blip2cap.tiny.scenes import VALIDATION_SEEDS, Question, Scene, draw

_SIZES = ((640, 480), (480, 640), (512, 512), (800, 450))
"""Files come in many shapes; most of them as the first."""
_BATCH = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Shares from 0 to 1."""

    num_captions: int
    captions_exact: float
    prompted_captions_exact: float
    """After the prompt "a photo of"."""
    wrong_captions_by_words: dict[int, int]
    """How many wrong captions have how many words that differ, are missing or too many."""
    num_questions: int
    answers_exact: float
    by_type: dict[str, float]
    """Answers exact by type of question."""
    by_answer: dict[str, float]
    """Answers exact by true answer."""
    asked: dict[str, int]
    """How often each true answer occurs."""
    yes_share: float
    """Share of yes among the answers given to "is there" questions."""
    true_yes_share: float
    """Share of those to which yes is the true answer."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def measure(model: Blip2, *, num_scenes: int, num_questions: int, first_seed: int = VALIDATION_SEEDS.start) -> Accuracy:
    """Caption `num_scenes` unseen scenes from JPEG files, and ask `num_questions` questions about them, greedily."""
    captions: list[tuple[str, str]] = []
    prompted: list[tuple[str, str]] = []
    answers: list[tuple[Question, str]] = []
    scenes = _files(range(first_seed, first_seed + num_scenes), model.image_size)
    template = Template(FAMILIES[model.checkpoint.family].vqa_template, question=True)
    per_scene = -(-num_questions // num_scenes)
    while batch := list(islice(scenes, _BATCH)):
        features = model.encode([pixels for _, _, pixels in batch])
        for prompt, pairs in (("", captions), ("a photo of", prompted)):
            prompts = [Prompt(image=index, text=prompt, name="") for index in range(len(batch))]
            said = _texts(model.generate(features, prompts, GenerateOptions(), capacity=_BATCH))
            pairs += [(scene.caption, text) for (_, scene, _), text in zip(batch, said, strict=True)]
        questions = [
            (index, question)
            for index, (seed, scene, _) in enumerate(batch)
            for question in random.Random(f"questions {seed}").sample(
                scene.questions, min(per_scene, len(scene.questions))
            )
        ]
        prompts = [Prompt(image=index, text=template.fill("", q.text), name="") for index, q in questions]
        options = GenerateOptions(max_new_tokens=ANSWER_NEW_TOKENS)
        said = _texts(model.generate(features, prompts, options, capacity=_BATCH))
        answers += [(question, text) for (_, question), text in zip(questions, said, strict=True)]
    return _score(captions, prompted, answers[:num_questions])


def _files(seeds: range, size: int) -> Iterator[tuple[int, Scene, Pixels]]:
    """Draw, save and decode, as if each scene were a file of a user's."""
    for seed in seeds:
        rng = random.Random(f"file {seed}")
        scene = draw(seed, rng.choices(_SIZES, weights=(7, 1, 1, 1))[0])
        file = io.BytesIO()
        scene.image.save(file, "JPEG", quality=rng.randint(70, 95))
        yield seed, scene, decode(file.getvalue(), size, DecodeOptions()).pixels_HWC


def _texts(results: Sequence[list[Generated] | Exception]) -> list[str]:
    return [result[0].text for result in results if isinstance(result, list)]


def _score(
    captions: Sequence[tuple[str, str]], prompted: Sequence[tuple[str, str]], answers: Sequence[tuple[Question, str]]
) -> Accuracy:
    wrong = Counter(_differing_words(true, said) for true, said in captions if true != said)
    types = sorted({question.type for question, _ in answers})
    trues = sorted({question.answer for question, _ in answers})
    is_there = [(question.answer, said) for question, said in answers if question.type == "is_there"]
    return Accuracy(
        num_captions=len(captions),
        captions_exact=_share([true == said for true, said in captions]),
        prompted_captions_exact=_share([true == said for true, said in prompted]),
        wrong_captions_by_words=dict(sorted(wrong.items())),
        num_questions=len(answers),
        answers_exact=_share([question.answer == said for question, said in answers]),
        by_type={t: _share([q.answer == said for q, said in answers if q.type == t]) for t in types},
        by_answer={t: _share([q.answer == said for q, said in answers if q.answer == t]) for t in trues},
        asked=dict(Counter(question.answer for question, _ in answers).most_common()),
        yes_share=_share([said == "yes" for _, said in is_there]),
        true_yes_share=_share([true == "yes" for true, _ in is_there]),
    )


def _share(right: Sequence[bool]) -> float:
    return round(sum(right) / max(1, len(right)), 4)


def _differing_words(true: str, said: str) -> int:
    """Count the words to change, add or drop (Levenshtein distance over words)."""
    previous = list(range(len(said.split()) + 1))
    for row, word in enumerate(true.split(), start=1):
        current = [row]
        for column, other in enumerate(said.split(), start=1):
            cost = min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (word != other))
            current.append(cost)
        previous = current
    return previous[-1]
