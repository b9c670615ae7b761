"""Texts in generation: prompts join when others have left, and a text leaves soon after it has ended.

transformers' `generate` computes all texts of a batch up to the end of the longest.

Shapes: N = rows, M = rows that are kept, T = tokens of prompt and text, padded on the left, C = new tokens, V =
vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch.nn import functional

from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.sampling import Rules, Sampler
from blip2cap.models.vlm.shared import Computed

Row = TypeVar("Row")
"""Whatever names a text to the caller."""
_STEPS = 8
"""Number of tokens after which texts may leave: looking for their ends waits for the device."""


class RollingBatch(Generic[Row]):
    """Generates greedily, or draws each text by its own seed; a text does not depend on the others.

    For networks with keys and values in `cache.RoomyLayer`. After an error, only `clear` can be called.
    """

    def __init__(self, network: Any, options: GenerateOptions, *, ends: Collection[int]) -> None:
        self.network, self.options, self._ends = network, options, frozenset(ends)
        self._sampler = Sampler(options) if options.sampling else None
        self.clear()

    def clear(self) -> None:
        """Remove all texts."""
        device = self.network.device
        self.rows: list[Row] = []
        self._nums_new: list[int] = []
        """Number of new tokens of each row."""
        self._state: Computed | None = None
        self._seeds_N = torch.empty(0, dtype=torch.long, device=device)
        self._new_NC = torch.empty((0, self.options.max_new_tokens), dtype=torch.long, device=device)
        self._rules = Rules(self.options, sorted(self._ends), device)

    def join(self, rows: Sequence[Row], prompts: Computed, seeds: Sequence[int]) -> None:
        """Add texts, given their computed prompts and the seed of each."""
        if self._rules.active:
            self._rules.start(prompts.ids())
        if self._state is None:
            self._state = prompts
        else:
            self._state.join(prompts)
        device = self._seeds_N.device
        self._seeds_N = torch.cat([self._seeds_N, torch.tensor(seeds, dtype=torch.long, device=device)])
        self._new_NC = functional.pad(self._new_NC, (0, 0, 0, len(rows)))
        self.rows += rows
        self._nums_new += [0] * len(rows)

    @torch.inference_mode()
    def advance(self) -> list[tuple[Row, list[int]]]:
        """Generate a few tokens of each text; remove and return the texts that are complete, up to their end."""
        assert self._state is not None, "no text has joined"
        num_steps = min(_STEPS, self.options.max_new_tokens - max(self._nums_new))
        nums_N = torch.tensor(self._nums_new, device=self._seeds_N.device)
        for step in range(num_steps):
            self._step(self._state, nums_N + step)
        self._nums_new = [num_new + num_steps for num_new in self._nums_new]
        kept, complete = [], []
        for at, (ids, num_new) in enumerate(zip(self._new_NC.tolist(), self._nums_new, strict=True)):
            end = next((index + 1 for index, token in enumerate(ids[:num_new]) if token in self._ends), num_new)
            if end < num_new or ids[end - 1] in self._ends or num_new == self.options.max_new_tokens:
                complete.append((self.rows[at], ids[:end]))
            else:
                kept.append(at)
        if not kept:
            self.clear()
        elif complete:
            self._keep(kept)
        return complete

    def _step(self, state: Computed, nums_N: torch.Tensor) -> None:
        """Choose the next token of each row, given the number of new ones so far."""
        scores_NV = (
            self.network(
                input_ids=state.ids_NT[:, -1:],
                attention_mask=state.mask_NT,
                position_ids=state.positions(-1),
                past_key_values=state.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .to(torch.float32)
        )
        if self._rules.active:
            self._rules.apply(0, self._new_NC, nums_N, scores_NV)
        if self._sampler is not None:
            scores_NV = self._sampler.apply(scores_NV, self._seeds_N, nums_N)
        chosen_N1 = scores_NV.argmax(-1, keepdim=True)
        self._new_NC.scatter_(1, nums_N.unsqueeze(1), chosen_N1)
        state.add(chosen_N1)

    def _keep(self, rows: Sequence[int]) -> None:
        assert self._state is not None
        rows_M = torch.tensor(rows, device=self._seeds_N.device)
        self._state.select(rows_M)
        self._rules.keep(rows_M)
        self._seeds_N, self._new_NC = self._seeds_N[rows_M], self._new_NC[rows_M]
        self.rows, self._nums_new = [self.rows[at] for at in rows], [self._nums_new[at] for at in rows]
