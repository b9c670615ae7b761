"""A text session with a guard: texts with a fault are generated once more, with repetition blocked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import Result, Session
from blip2cap.records import Generated, Prompt
from blip2cap.tasks.text_rules import FAULTS, badness, find_fault

_BLOCKED_SIZE = 3
"""No sequence of this number of tokens occurs twice in a second text. 2 would forbid a second `of a`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Request:
    """One prompt in the guard."""

    ticket: int
    features: Any
    """Features of its image alone: a view, which needs no additional memory."""
    prompt: Prompt
    texts: Sequence[Generated] = ()
    """The first texts, once they are generated."""


class GuardedSession:
    """Two sessions: prompts whose texts have a fault go from the first to the second, which blocks repetition.

    Every text of an image is judged. Samples are independent: a faulty one is replaced by the second try of the same
    number. Beams come from one search: the better of the two lists is kept whole.

    Prompts that wait for a second try count as pending, so their number never exceeds what the first session takes.
    """

    def __init__(self, open_session: Callable[[GenerateOptions], Session], options: GenerateOptions) -> None:
        self.open_session, self.options = open_session, options
        self.second_options = second = second_options(options)
        blocks = second.no_repeat_ngram_size != options.no_repeat_ngram_size
        extends = second.min_new_tokens != options.min_new_tokens
        self.retried = {"": False, "repetition": blocks, "prompt_echo": blocks, "empty": extends}
        """Fault -> whether a second try can remove it: the options of the run may already prevent it."""
        self.first = open_session(options)
        self.second: Session | None = None
        """None until it is needed, because it has a cache of its own."""
        self.in_first: dict[int, _Request] = {}
        self.gathered: list[_Request] = []
        """Requests for the second session, which start together."""
        self.in_second: dict[int, _Request] = {}
        self.num_overtaken = 0
        """Number of results since the first of these was gathered."""
        self.capacity_before = self.capacity

    @property
    def capacity(self) -> int:
        """Maximum number of prompts processed at once."""
        return self.first.capacity

    @property
    def num_pending(self) -> int:
        """Number of prompts that wait or run."""
        return self.first.num_pending + len(self.gathered) + len(self.in_second)

    @property
    def num_ahead(self) -> int:
        """Number of prompts that should wait besides those of the capacity."""
        return self.first.num_ahead

    def encode(self, images: Sequence[Any]) -> Any:
        """Run the vision encoder; return the features of each image. Raises MemoryError if they do not fit."""
        return self.first.encode(images)

    def add(self, features: Any, prompts: Sequence[Prompt]) -> list[int]:
        """Queue prompts about images with these features; return a ticket for each."""
        tickets = self.first.add(features, prompts)
        for ticket, prompt in zip(tickets, prompts, strict=True):
            image = features[prompt.image : prompt.image + 1]
            self.in_first[ticket] = _Request(ticket=ticket, features=image, prompt=replace(prompt, image=0))
        return tickets

    def advance(self) -> list[tuple[int, Result]]:
        """Compute for a while; return the results that are complete, flagged."""
        done: list[tuple[int, Result]] = []
        for ticket, result in self.first.advance():
            request = self.in_first.pop(ticket)
            result = _judge(result, request.prompt)
            if isinstance(result, list) and any(self.retried[text.flag] for text in result):
                self.gathered.append(replace(request, texts=result))
            else:
                done.append((ticket, result))
        self.num_overtaken = self.num_overtaken + len(done) if self.gathered else 0
        if self.gathered and (
            self.in_second
            or self.first.num_pending == 0
            or len(self.gathered) >= max(1, self.capacity // 8)  # on a GPU, few texts cost nearly as much as many
            or self.num_overtaken >= 2 * self.capacity  # rows of later images wait for this one
        ):
            if self.second is None:
                self.second = self.open_session(self.second_options)
            for request in self.gathered:
                (ticket,) = self.second.add(request.features, [request.prompt])
                self.in_second[ticket] = request
            self.gathered, self.num_overtaken = [], 0
        if self.second is not None and self.in_second:
            for ticket, result in self.second.advance():
                request = self.in_second.pop(ticket)
                done.append((request.ticket, self._better(request.texts, _judge(result, request.prompt))))
        if self.capacity < self.capacity_before and not self.in_second:
            self.second = None  # after out-of-memory, free its idle cache
        self.capacity_before = self.capacity
        return done

    def close(self) -> None:
        """Give up what is not complete."""
        self.first.close()
        if self.second is not None:
            self.second.close()

    def _better(self, first: Sequence[Generated], result: Result) -> list[Generated]:
        """Choose between the first texts and the second; a second try that failed changes nothing."""
        if isinstance(result, ImageError):
            return [*first]
        second = [replace(text, flag=text.flag or "retried") for text in result]
        if self.options.sampling:
            return [min(pair, key=_badness) for pair in zip(first, second, strict=True)]
        return [*min(first, second, key=lambda texts: [_badness(text) for text in texts])]


def second_options(options: GenerateOptions) -> GenerateOptions:
    """Return the options of a second try: repetition blocked, and at least one token."""
    size = min(options.no_repeat_ngram_size or _BLOCKED_SIZE, _BLOCKED_SIZE)
    return replace(options, no_repeat_ngram_size=size, min_new_tokens=max(1, options.min_new_tokens))


def worst_flag(texts: Sequence[Generated]) -> str:
    """Return the worst flag of several texts."""
    return max((text.flag for text in texts), key=("", "retried", *FAULTS).index, default="")


def _judge(result: Result, prompt: Prompt) -> Result:
    """Flag texts with their faults."""
    if isinstance(result, ImageError):
        return result
    return [
        replace(text, flag=find_fault(text.text, prompt.text, prompt.question, cut=text.finish_reason == "length"))
        for text in result
    ]


def _badness(text: Generated) -> tuple[int, float]:
    return badness(text.text, text.flag)
