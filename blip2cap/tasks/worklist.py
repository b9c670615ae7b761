"""What is to be done: which prompts for which image, less what a finished row already answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from blip2cap.errors import UsageError
from blip2cap.prompts import Template
from blip2cap.records import ImageRef, row_key


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One text to ask for: the row it makes, and the prompt."""

    question: str | None
    """None for a caption."""
    prompt: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One image with everything that is asked of it."""

    ref: ImageRef
    queries: tuple[Query, ...]

    @property
    def keys(self) -> Iterator[str]:
        """Of the rows that it makes."""
        file_name, file_name_b64 = self.ref.file_name, self.ref.file_name_b64
        return (row_key(file_name, file_name_b64, ask.question) for ask in self.queries)


class Worklist:
    """Turns images into tasks, and counts what it sees on the way.

    Raises UsageError for questions that are empty, doubled or not valid text.
    """

    def __init__(self, template: Template, questions: tuple[str, ...] | None = None) -> None:
        self.template = template
        self.questions = questions
        """None: captions."""
        self.num_images = 0
        """Seen so far."""
        self.num_finished = 0
        """Rows, of images seen so far, that were there already."""
        for question, count in Counter(questions).items():
            if not question.strip():
                raise UsageError("a question is empty. Give its text with -q.")
            if not _is_text(question):
                raise UsageError(f"question {question!r}: not valid UTF-8.")
            if count > 1:
                raise UsageError(f'question "{question}" is asked twice. Every (image, question) makes one row.')
        if not _is_text(template.text):
            raise UsageError(f"prompt {template.text!r}: not valid UTF-8.")

    def requests(self, refs: Iterable[ImageRef], finished: Container[str]) -> Iterator[Request]:
        """Yield one task for each image that has a row missing, in the order of `refs`."""
        self.num_images = self.num_finished = 0
        for ref in refs:
            self.num_images += 1
            file_name, file_name_b64 = ref.file_name, ref.file_name_b64
            queries = []
            for question in (None,) if self.questions is None else self.questions:
                if row_key(file_name, file_name_b64, question) in finished:
                    self.num_finished += 1
                else:
                    queries.append(Query(question=question, prompt=self.template.fill(file_name, question or "")))
            if queries:
                yield Request(ref=ref, queries=tuple(queries))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
