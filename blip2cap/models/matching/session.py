"""The session of `match`: pairs of image and text wait, and are scored together."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from blip2cap.decode.image import Pixels
from blip2cap.errors import ImageError
from blip2cap.models.base import Session
from blip2cap.models.blip2.embed_session import normalise
from blip2cap.models.blip2.transfer import HostCopy
from blip2cap.models.device import memory_errors
from blip2cap.records import MatchScore, Prompt

if TYPE_CHECKING:
    from blip2cap.models.matching.model import ImageFeatures, Matcher

_CPU, _GPU = 64, 256
"""Pairs at once, unless a number is given."""
_NUM_TEXTS = 4096
"""Number of texts that are remembered with their vectors, unless every image is compared with more."""

_Result: TypeAlias = MatchScore | ImageError


@dataclass(slots=True, kw_only=True, eq=False)
class _Text:
    """A text, tokenised once in a session."""

    ids: list[int]
    vector_E: torch.Tensor | None = None
    """Its vector, once it was needed."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Pair:
    """An image and a text."""

    ticket: int
    features: ImageFeatures
    image: int
    """Index of the image in the features."""
    text: _Text


class MatchSession(Session):
    """Scores of one run. After out-of-memory, pairs are scored in halves; one that does not fit alone is an ImageError.

    On a GPU the scores of some pairs are read when the next ones are queued, so that the device never waits for the
    host.
    """

    def __init__(self, model: Matcher, *, capacity: int | None, num_texts: int = 0) -> None:
        self.model = model
        self._given = capacity or (_CPU if model.on_cpu else _GPU)
        self._memory_limit = self._given
        """Number of pairs that fit the device's memory, as far as is known."""
        self._tickets = itertools.count()
        self._texts: OrderedDict[str, _Text] = OrderedDict()
        self._most_texts = max(_NUM_TEXTS, num_texts)
        self._waiting: deque[_Pair] = deque()
        self._copies: deque[tuple[list[int], HostCopy]] = deque()
        """Tickets of pairs, and their scores on their way to the host."""
        self._failed: list[tuple[int, _Result]] = []

    @property
    def capacity(self) -> int:
        """Largest number of pairs scored at once."""
        return min(self._given, self._memory_limit)

    @property
    def num_pending(self) -> int:
        """Number of pairs that wait or are being scored."""
        return len(self._waiting) + sum(len(tickets) for tickets, _ in self._copies) + len(self._failed)

    def encode(self, images: Sequence[Pixels]) -> ImageFeatures:
        """Run the vision encoder; return the features of the images. Raises MemoryError if they do not fit."""
        return self.model.encode(images)

    def add(self, features: ImageFeatures, prompts: Sequence[Prompt]) -> list[int]:
        """Queue the texts of prompts for images, given the features of the images; return a ticket for each.

        The result of a text that is empty or too long for the model is an ImageError.
        """
        tickets = []
        for prompt in prompts:
            ticket = next(self._tickets)
            tickets.append(ticket)
            text = self._text(prompt.text)
            if reason := self.model.misfit(prompt.text, text.ids):
                self._failed.append((ticket, ImageError("unsupported", f"its text: {reason}")))
            else:
                self._waiting.append(_Pair(ticket=ticket, features=features, image=prompt.image, text=text))
        return tickets

    def _text(self, text: str) -> _Text:
        found = self._texts.get(text)
        if found is None:
            found = self._texts[text] = _Text(ids=self.model.tokenise(text))
            if len(self._texts) > self._most_texts:
                self._texts.popitem(last=False)
        else:
            self._texts.move_to_end(text)
        return found

    def advance(self) -> list[tuple[int, _Result]]:
        """Score pairs; return the scores that are complete, by ticket."""
        done, self._failed = self._failed, []
        is_new = self._score()
        if self._copies and not (is_new and self.model.reads_late and len(self._copies) == 1):
            tickets, copy = self._copies.popleft()
            done += [(ticket, _result(*scores)) for ticket, scores in zip(tickets, copy.tolist(), strict=True)]
        return done

    def _score(self) -> bool:
        """Score pairs that wait, at most `capacity`; return True if there were any, and they fit the memory."""
        pairs = list(itertools.islice(self._waiting, self.capacity))
        if not pairs:
            return False
        try:
            with self.model.current(), memory_errors(), torch.inference_mode():
                copy = HostCopy(self._scores(pairs))
        except MemoryError as error:
            detail = str(error)
        else:
            self._copies.append(([pair.ticket for pair in pairs], copy))
            for _ in pairs:
                self._waiting.popleft()
            return True
        # Outside `except`: there the error would still hold every tensor that did not fit.
        if len(pairs) > 1:
            self._memory_limit = len(pairs) // 2
        else:
            self._memory_limit = self._given
            self._failed.append((self._waiting.popleft().ticket, ImageError("out_of_memory", detail)))
        return False

    def _scores(self, pairs: Sequence[_Pair]) -> torch.Tensor:
        """Return the scores of pairs, [N, 2]; the vectors of new texts are computed first."""
        new = {id(pair.text): pair.text for pair in pairs if pair.text.vector_E is None}
        if new:
            vectors_NE = normalise(self.model.embed_ids([text.ids for text in new.values()]))
            for text, vector_E in zip(new.values(), vectors_NE.unbind(), strict=True):
                text.vector_E = vector_E
        scores: list[torch.Tensor] = []
        for _, group in itertools.groupby(pairs, key=lambda pair: id(pair.features)):
            same = list(group)
            vectors: list[Any] = [pair.text.vector_E for pair in same]
            images, ids = [pair.image for pair in same], [pair.text.ids for pair in same]
            scores.append(self.model.score(same[0].features, images, ids, torch.stack(vectors)))
        return torch.cat(scores)


def _result(itm: float, itc: float) -> _Result:
    if not (math.isfinite(itm) and math.isfinite(itc)):
        return ImageError("unsupported", "its score is no number: this dtype overflows. Use --dtype float32")
    return MatchScore(itm=itm, itc=itc)
