"""Chooses the next token: the most likely one, one drawn at random, or those that a beam search keeps.

A search holds the state of the texts that are being decoded, in the order of their slots in the cache; a slot is
`num_beams` rows. `finished` waits for the device and reads the tokens chosen since the last call. `choose` waits for
the device only if there are rules.

Shapes: M = slots, N = rows (M x beams), V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from blip2cap.models.blip2.sampling import Rules, Sampler
from blip2cap.options import GenerateOptions


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
    """New tokens that were read so far, end token included."""
    num_chosen: int = 0
    """Number of new tokens chosen so far, read or not."""


class Search(Protocol):
    """The interface between a search and the decoding loop."""

    num_beams: int
    texts: list[Text]

    def start(self, starts: Sequence[Start]) -> None:
        """Add texts, in the slots after the existing ones."""

    def choose(self, scores_NV: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Choose the next token of the slots from `first` on, given the logits of their rows.

        Returns the ids of their rows, and the row that each continues (None: itself).
        """

    def finished(self) -> list[int]:
        """Return the slots whose texts have ended."""

    def results(self, slot: int) -> list[list[int]]:
        """Return the ids of a slot's best texts, best first, with their end tokens."""

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these slots, in this order; unread tokens belong to the others."""


class Greedy:
    """Chooses the most likely token, or draws one at random."""

    num_beams = 1

    def __init__(self, options: GenerateOptions, ends: Sequence[int], device: torch.device) -> None:
        self.options = options
        self.ends = frozenset(ends)
        self.rules = Rules(options, ends, device)
        self.sampler = Sampler(options) if options.sampling else None
        self.texts: list[Text] = []
        self.unread: list[tuple[int, torch.Tensor]] = []
        self.seeds_M = torch.empty(0, dtype=torch.long, device=device)
        self.steps_M = torch.empty(0, dtype=torch.long, device=device)
        """Number of tokens drawn so far: `Text.num_chosen` on the device, so that drawing does not wait."""

    def start(self, starts: Sequence[Start]) -> None:
        """Add texts, in the slots after the existing ones."""
        self.texts += [Text(start=start) for start in starts]
        if self.sampler is not None:
            seeds = torch.tensor([start.seed for start in starts], device=self.seeds_M.device)
            self.seeds_M = torch.cat([self.seeds_M, seeds])
            self.steps_M = torch.cat([self.steps_M, torch.zeros_like(seeds)])

    def choose(self, scores_NV: torch.Tensor, first: int) -> tuple[torch.Tensor, None]:
        """Choose the next token of the slots from `first` on, given their logits."""
        texts = self.texts[first:]
        if self.rules.active:
            self.read()
            sequences = [[*text.start.given_ids, *text.ids] for text in texts]
            self.rules.apply(sequences, [len(text.start.given_ids) for text in texts], scores_NV)
        if self.sampler is not None:
            scores_NV = self.sampler.apply(scores_NV, self.seeds_M[first:], self.steps_M[first:])
            self.steps_M[first:] += 1
        ids_N = scores_NV.argmax(-1)
        self.unread.append((first, ids_N))
        for text in texts:
            text.num_chosen += 1
        return ids_N, None

    def read(self) -> None:
        """Wait for the device, and read the ids chosen since the last call."""
        for first, ids_N in self.unread:
            for text, token in zip(self.texts[first:], ids_N.tolist(), strict=True):
                if not (text.ids and text.ids[-1] in self.ends):
                    text.ids.append(token)
        self.unread.clear()

    def finished(self) -> list[int]:
        """Return the slots whose texts have ended."""
        self.read()
        longest, ends = self.options.max_new_tokens, self.ends
        return [slot for slot, text in enumerate(self.texts) if len(text.ids) >= longest or text.ids[-1] in ends]

    def results(self, slot: int) -> list[list[int]]:
        """Return the ids of a slot's text."""
        return [self.texts[slot].ids]

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these slots, in this order; unread tokens belong to the others."""
        self.unread.clear()
        self.texts = [self.texts[slot] for slot in slots]
        if self.sampler is not None:
            order = list(slots)
            self.seeds_M, self.steps_M = self.seeds_M[order], self.steps_M[order]
