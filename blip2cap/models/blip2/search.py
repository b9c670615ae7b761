"""Chooses the next token: the most likely one, one drawn at random, or those that a beam search keeps.

A search holds the state of the texts that are being decoded, in the order of their slots in the cache; a slot has
`num_beams` rows of scores. Nothing here waits for the device but `read`, and the results that `take` returns.

Shapes: M = slots, N = rows of scores (M x beams), V = vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.sampling import Rules, Sampler
from blip2cap.models.blip2.transfer import HostCopy, to_device


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """A text before its first new token."""

    given_ids: Sequence[int]
    """Ids before the first new one, for repetition and n-gram rules."""
    seed: int
    """Seed of sampling."""


@dataclass(kw_only=True, slots=True)
class Text:
    """A text that is being decoded; this state is on the host."""

    start: Start
    ids: list[int] = field(default_factory=list)
    """New tokens that were read so far, end token included; not used with beams."""
    num_chosen: int = 0
    """Number of new tokens chosen so far, read or not."""
    ended: bool = False
    """True if its end was read."""


Results = Callable[[], list[list[list[int]]]]
"""Waits for the device; returns the ids of the best texts of each slot, best first, with their end tokens."""


class Search(Protocol):
    """The interface between a search and the decoding loop."""

    num_beams: int
    texts: list[Text]

    def start(self, starts: Sequence[Start]) -> None:
        """Add texts, in the slots after the existing ones."""

    def choose(self, scores_NV: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Choose the next token of the slots from `first` on, given the logits of their rows.

        Returns the ids of their rows, and the beam of its slot that each continues, [M, beams] (None: itself).
        """

    def read(self, leave: int = 0) -> None:
        """Wait for the device to make all but the last `leave` choices, and read them."""

    def finished(self) -> list[int]:
        """Return the slots whose texts have ended, as far as choices were read or reached the largest number."""

    def take(self, slots: Sequence[int]) -> Results:
        """Return the results of finished slots, which may be read once all choices so far are."""

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these slots, in this order."""


class Greedy:
    """Chooses the most likely token, or draws one at random."""

    num_beams = 1

    def __init__(self, options: GenerateOptions, ends: Sequence[int], device: torch.device) -> None:
        self.options = options
        self.ends = frozenset(ends)
        self.rules = Rules(options, ends, device)
        self.sampler = Sampler(options) if options.sampling else None
        self.texts: list[Text] = []
        self.unread: deque[tuple[list[Text], HostCopy]] = deque()
        # The same as in `texts`, on the device; only if sampling or rules need them.
        self.seeds_M = torch.empty(0, dtype=torch.long, device=device)
        self.ids_MT = torch.empty((0, options.max_new_tokens), dtype=torch.long, device=device)
        self.num_chosen_M = torch.empty(0, dtype=torch.long, device=device)

    def start(self, starts: Sequence[Start]) -> None:
        """Add texts, in the slots after the existing ones."""
        self.texts += [Text(start=start) for start in starts]
        if self.sampler is not None or self.rules.active:
            self.rules.start([start.given_ids for start in starts])
            seeds_M = to_device([start.seed for start in starts], self.seeds_M.device)
            self.seeds_M = torch.cat([self.seeds_M, seeds_M])
            self.num_chosen_M = torch.cat([self.num_chosen_M, torch.zeros_like(seeds_M)])
            self.ids_MT = torch.cat([self.ids_MT, self.ids_MT.new_zeros((len(starts), self.ids_MT.shape[1]))])

    def choose(self, scores_NV: torch.Tensor, first: int) -> tuple[torch.Tensor, None]:
        """Choose the next token of the slots from `first` on, given their logits."""
        texts = self.texts[first:]
        ids_MT, num_chosen_M = self.ids_MT[first:], self.num_chosen_M[first:]
        if self.rules.active:
            self.rules.apply(first, ids_MT, num_chosen_M, scores_NV)
        if self.sampler is not None:
            scores_NV = self.sampler.apply(scores_NV, self.seeds_M[first:], num_chosen_M)
        ids_N = scores_NV.argmax(-1)
        if self.rules.active:
            ids_MT.scatter_(1, num_chosen_M.unsqueeze(1), ids_N.unsqueeze(1))
        num_chosen_M += 1
        self.unread.append((texts, HostCopy(ids_N)))
        for text in texts:
            text.num_chosen += 1
        return ids_N, None

    def read(self, leave: int = 0) -> None:
        """Wait for the device to make all but the last `leave` choices, and read their ids."""
        while len(self.unread) > leave:
            texts, ids_N = self.unread.popleft()
            for text, token in zip(texts, ids_N.tolist(), strict=True):
                if not text.ended:
                    text.ids.append(token)
                    text.ended = token in self.ends

    def finished(self) -> list[int]:
        """Return the slots whose texts have ended."""
        longest = self.options.max_new_tokens
        return [slot for slot, text in enumerate(self.texts) if text.ended or text.num_chosen >= longest]

    def take(self, slots: Sequence[int]) -> Results:
        """Return the results of finished slots, which may be read once all choices so far are."""
        texts = [self.texts[slot] for slot in slots]
        return lambda: [[text.ids] for text in texts]

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these slots, in this order."""
        self.texts = [self.texts[slot] for slot in slots]
        if self.sampler is not None or self.rules.active:
            order_M = to_device(list(slots), self.seeds_M.device)
            self.rules.keep(order_M)
            self.seeds_M, self.num_chosen_M = self.seeds_M[order_M], self.num_chosen_M[order_M]
            self.ids_MT = self.ids_MT[order_M]
