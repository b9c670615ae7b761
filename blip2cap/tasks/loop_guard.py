"""The text side as a run sees it, and a guard around it that asks once more where a text went wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blip2cap.errors import ImageError
from blip2cap.models.base import Result, Session
from blip2cap.options import GenerateOptions
from blip2cap.records import Generated, Prompt
from blip2cap.tasks.text_rules import FAULTS, badness, find_fault

_BLOCKED = 3
"""No sequence of so many tokens comes twice in a second text. Two would forbid `of a` ever to come again."""
_PART_GATHERED = 8
"""Second tries begin when they are this part of the texts at once: a step of a few costs a GPU nearly as much as one of
many."""
_MOST_RESULTS = 2
"""Times the number of texts at once: after so many other results even a lone second try begins, as rows wait for it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Asked:
    """A prompt whose result is not known to be fine."""

    ticket: int
    features: Any
    """Of its image alone. Views: the text side needs them until the text ends, and they take no room of their own."""
    prompt: Prompt
    texts: list[Generated]
    """The first ones, flagged; empty until there are any."""


class GuardedSession:
    """Two text sides: the second blocks repetition, and gets what went wrong in the first.

    Every text of an image is judged. Samples are drawn each by itself, so a bad one gives way to the same of the second
    try. Beams come from one search: the better of the two lists stays whole, best first and without doubles.

    What waits for a second try, or is in it, counts as a text under way; no more are kept than run at once.
    """

    def __init__(self, open_texts: Callable[[GenerateOptions], Session], options: GenerateOptions) -> None:
        self.open_texts, self.options = open_texts, options
        self.second_options = second_options(options)
        self.first = open_texts(options)
        self.second: Session | None = None
        """None until a text went wrong: it has a cache of its own."""
        self.in_first: dict[int, _Asked] = {}
        self.gathered: list[_Asked] = []
        """To be tried again, together."""
        self.in_second: dict[int, _Asked] = {}
        self._num_results = 0
        """Since the first of those that are gathered."""
        self._room = self.first.capacity

    @property
    def capacity(self) -> int:
        """How many are decoded at a time, at the most."""
        return self.first.capacity

    @property
    def num_pending(self) -> int:
        """How many wait or run."""
        return self.first.num_pending + len(self.gathered) + len(self.in_second)

    def add(self, features: Any, prompts: Sequence[Prompt]) -> list[int]:
        """Queue prompts about images whose features these are; return a ticket for each."""
        tickets = self.first.add(features, prompts)
        for ticket, prompt in zip(tickets, prompts, strict=True):
            image = features[prompt.image : prompt.image + 1]
            self.in_first[ticket] = _Asked(ticket=ticket, features=image, prompt=replace(prompt, image=0), texts=[])
        return tickets

    def advance(self) -> list[tuple[int, Result]]:
        """Go on for a while; return the results that are ready, flagged."""
        done: list[tuple[int, Result]] = []
        for ticket, result in self.first.advance():
            asked = self.in_first.pop(ticket)
            if isinstance(result, ImageError):
                done.append((ticket, result))
                continue
            texts = _judge(result, asked.prompt)
            if any(self._may_help(text.flag) for text in texts):
                self.gathered.append(replace(asked, texts=texts))
            else:
                done.append((ticket, texts))
        self._num_results = self._num_results + len(done) if self.gathered else 0
        if self.gathered and self._due:
            self._try_again()
        if self.second is not None and self.in_second:
            for ticket, result in self.second.advance():
                asked = self.in_second.pop(ticket)
                done.append((asked.ticket, self._better(asked, result)))
        if self.first.capacity < self._room and not self.in_second:
            self.second = None  # memory ran out, and its cache, which nobody uses now, is some of it
        self._room = self.first.capacity
        return done

    def _may_help(self, fault: str) -> bool:
        """Whether a second text can differ from the first where that matters: the run itself may block already."""
        options, second = self.options, self.second_options
        if fault == "empty":
            return second.min_new_tokens != options.min_new_tokens
        return fault != "" and second.no_repeat_ngram_size != options.no_repeat_ngram_size

    @property
    def _due(self) -> bool:
        """Whether what is gathered is to begin: it is many, waits for long, or is not alone or has the model alone."""
        enough = max(1, self.capacity // _PART_GATHERED)
        waited = self._num_results >= _MOST_RESULTS * self.capacity
        return bool(self.in_second) or self.first.num_pending == 0 or len(self.gathered) >= enough or waited

    def _try_again(self) -> None:
        if self.second is None:
            self.second = self.open_texts(self.second_options)
        for asked in self.gathered:
            (ticket,) = self.second.add(asked.features, [asked.prompt])
            self.in_second[ticket] = asked
        self.gathered, self._num_results = [], 0

    def _better(self, asked: _Asked, result: Result) -> list[Generated]:
        """Choose between the first texts and the second; a second try that failed changes nothing."""
        first = asked.texts
        if isinstance(result, ImageError):
            return first
        second = _judge(result, asked.prompt)
        if self.options.sampling:
            better = [min(pair, key=_badness) for pair in zip(first, second, strict=True)]
        else:
            better = min(first, second, key=lambda texts: [_badness(text) for text in texts])
        seconds = {id(text) for text in second}
        return [replace(text, flag=text.flag or "retried") if id(text) in seconds else text for text in better]


def second_options(options: GenerateOptions) -> GenerateOptions:
    """Return the options of a second try: repetition blocked, and at least one token; all else as it was."""
    size = options.no_repeat_ngram_size
    return replace(
        options,
        no_repeat_ngram_size=min(size, _BLOCKED) if size else _BLOCKED,
        min_new_tokens=max(1, options.min_new_tokens),
    )


def worst_flag(texts: Sequence[Generated]) -> str:
    """Return what is to be said of several texts together."""
    return max((text.flag for text in texts), key=("", "retried", *FAULTS).index, default="")


def _judge(texts: Sequence[Generated], prompt: Prompt) -> list[Generated]:
    return [
        replace(text, flag=find_fault(text.text, prompt.text, prompt.question, cut=text.finish_reason == "length"))
        for text in texts
    ]


def _badness(text: Generated) -> tuple[int, float]:
    return badness(text.text, text.flag)
