"""`vqa`: the answer to each question about each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from blip2cap.errors import UsageError
from blip2cap.generate_options import ANSWER_NEW_TOKENS, GenerateOptions
from blip2cap.models.base import Family
from blip2cap.prompts import Template
from blip2cap.rows import Schema
from blip2cap.tasks.text import TextTask, is_text, parsed, schema_from, schema_with


@dataclass(frozen=True, kw_only=True, slots=True)
class Vqa(TextTask):
    """Answers to questions. Raises UsageError for questions that are empty, repeated or not valid text."""

    name: ClassVar[str] = "vqa"
    template_setting: ClassVar[str] = "template"

    questions: tuple[str, ...]
    generate: GenerateOptions = field(default_factory=lambda: GenerateOptions(max_new_tokens=ANSWER_NEW_TOKENS))

    def __post_init__(self) -> None:
        TextTask.__post_init__(self)
        for question, count in Counter(self.questions).items():
            if not question.strip():
                raise UsageError("a question is empty. Give its text with -q.")
            if not is_text(question):
                raise UsageError(f"question {question!r}: not valid UTF-8.")
            if count > 1:
                raise UsageError(f'question "{question}" is asked twice. Every (image, question) makes one row.')

    @property
    def labels(self) -> Sequence[str | None]:
        """One row for each question."""
        return self.questions

    def _parsed(self) -> Template:
        assert self.template is not None, "for_checkpoint comes first"
        return parsed(self.template, option="--template", question=True)

    def _default_template(self, family: Family) -> str:
        return family.vqa_template


def schema_of(settings: Mapping[str, Any]) -> Schema:
    """Return the columns of answers made with these settings."""
    return schema_from(settings, question=True)


def recognise(columns: Collection[str]) -> Schema | None:
    """Return the columns of answers if these are their names."""
    if not {"question", "answer"} <= set(columns):
        return None
    return schema_with(columns, question=True)
