"""How the next token is chosen: the likeliest, one drawn at random, or what a beam search keeps.

A search holds the state of the texts that are being decoded, in the order of their slots in the cache; a slot is
`num_beams` rows. `finished` waits for the device and reads what was chosen since. Choosing waits for it only where
rules are asked for.

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
    """A text at its beginning."""

    history: Sequence[int]
    """The ids that repetition and n-gram rules count, before the first new one."""
    seed: int
    """Of sampling."""


@dataclass(kw_only=True, slots=True)
class Text:
    """A text that is being decoded, on the host's side."""

    start: Start
    ids: list[int] = field(default_factory=list)
    """New tokens that were read so far, with the one that ends it."""
    num_chosen: int = 0
    """New tokens chosen so far, read or not."""


class Search(Protocol):
    """What the decoding loop needs of a search."""

    num_beams: int
    texts: list[Text]

    def start(self, starts: Sequence[Start]) -> None:
        """Take in texts, in the slots after those that there are."""

    def choose(self, scores_NV: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Choose the next token of the slots from `first` on, given the logits of their rows.

        Returns the ids of their rows, and which row each goes on from (None: its own).
        """

    def finished(self) -> list[int]:
        """Return the slots whose texts are done."""

    def results(self, slot: int) -> list[list[int]]:
        """Return the ids of a slot's best texts, best first, with the token that ended them if one did."""

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these slots, in this order; what is unread is of those that go."""


class Greedy:
    """The likeliest token, or one drawn at random."""

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
        """Tokens drawn so far: `Text.num_chosen` where the device needs it, so that drawing does not wait."""

    def start(self, starts: Sequence[Start]) -> None:
        """Take in texts, in the slots after those that there are."""
        self.texts += [Text(start=start) for start in starts]
        if self.sampler is not None:
            seeds = torch.tensor([start.seed for start in starts], device=self.seeds_M.device)
            self.seeds_M = torch.cat([self.seeds_M, seeds])
            self.steps_M = torch.cat([self.steps_M, torch.zeros_like(seeds)])

    def choose(self, scores_NV: torch.Tensor, first: int) -> tuple[torch.Tensor, None]:
        """Choose the next token of the slots from `first` on, given their logits."""
        texts = self.texts[first:]
        if self.rules.active:
            self.read()  # what a text says already decides
            histories = [[*text.start.history, *text.ids] for text in texts]
            self.rules.apply(histories, [len(text.start.history) for text in texts], scores_NV)
        if self.sampler is not None:
            scores_NV = self.sampler.apply(scores_NV, self.seeds_M[first:], self.steps_M[first:])
            self.steps_M[first:] += 1
        ids_N = scores_NV.argmax(-1)
        self.unread.append((first, ids_N))
        for text in texts:
            text.num_chosen += 1
        return ids_N, None

    def read(self) -> None:
        """Wait for the device, and read the ids chosen since the last time."""
        for first, ids_N in self.unread:
            for text, token in zip(self.texts[first:], ids_N.tolist(), strict=True):
                if not (text.ids and text.ids[-1] in self.ends):
                    text.ids.append(token)
        self.unread.clear()

    def finished(self) -> list[int]:
        """Return the slots whose texts are done."""
        self.read()
        longest, ends = self.options.max_new_tokens, self.ends
        return [slot for slot, text in enumerate(self.texts) if len(text.ids) >= longest or text.ids[-1] in ends]

    def results(self, slot: int) -> list[list[int]]:
        """Return the ids of a slot's text."""
        return [self.texts[slot].ids]

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these slots, in this order; what is unread is of those that go."""
        self.unread.clear()
        self.texts = [self.texts[slot] for slot in slots]
        if self.sampler is not None:
            order = list(slots)
            self.seeds_M, self.steps_M = self.seeds_M[order], self.steps_M[order]
