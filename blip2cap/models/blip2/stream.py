"""The text side as a stream: prompts wait, are decoded together, and leave one by one as their texts end.

A freed place in the cache goes to the next prompt at once, so a batch costs the mean length of its texts, not the
longest. Rows never see each other: a text does not depend on what is decoded beside it.

When the device has no memory left, fewer texts are decoded at a time; one that does not fit alone comes back as an
ImageError. What was begun is begun again, with the same outcome.

Shapes: I = images, Q = query tokens, D = hidden size, N = rows (texts x beams), T = tokens of a prompt.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from blip2cap.batch_size import BatchSize
from blip2cap.errors import ImageError
from blip2cap.models.base import Result
from blip2cap.models.blip2.decoders import Decoder
from blip2cap.models.blip2.memory import memory_errors
from blip2cap.models.blip2.search import Search, Start
from blip2cap.models.blip2.slots import Slots
from blip2cap.options import GenerateOptions
from blip2cap.records import Generated
from blip2cap.stopwatch import Stopwatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """A prompt as token ids."""

    ids: list[int]
    qformer_ids: list[int]
    """InstructBLIP's Q-Former reads the instruction too; empty for BLIP-2."""

    @property
    def lengths(self) -> tuple[int, int]:
        """What must be equal for prompts to go through a network side by side: nothing is ever padded."""
        return len(self.ids), len(self.qformer_ids)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextRow:
    """One text to generate."""

    ticket: int
    """Which result it belongs to; several samples of one prompt share it."""
    tokens: Tokens
    image: torch.Tensor
    """Its image's features, [Q, D], or [patches, D] for InstructBLIP; texts of one image share the tensor."""
    seed: int
    copy: int = 0
    """Which sample of its prompt this is."""


class Network(Protocol):
    """What the stream asks of the model around the decoder."""

    watch: Stopwatch
    num_query_tokens: int

    def image_embeddings(self, rows: Sequence[TextRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the language model sees of the images of rows, [I, Q, D], and which of them each row has."""

    def history(self, tokens: Tokens) -> list[int]:
        """Return the ids that rules count before the first new token."""

    def read_text(self, ids: list[int]) -> Generated:
        """Turn new tokens into a text."""


class TextStream:
    """Decodes texts with a lean decoder."""

    def __init__(
        self,
        network: Network,
        decoder: Decoder,
        search: Search,
        options: GenerateOptions,
        device: torch.device,
        *,
        size: BatchSize,
        check_every: int = 1,
    ) -> None:
        self.network, self.decoder, self.search, self.options, self.device = network, decoder, search, options, device
        self.size = size
        """How many texts are decoded at a time."""
        self.room: int | None = None
        """How many the device has memory for, once it ran out."""
        self.check_every = check_every
        """Steps between looks at what has ended: a look waits for the device."""
        self.slots = Slots(decoder, search.num_beams, options.max_new_tokens, device)
        self.waiting: deque[TextRow] = deque()
        self.running: list[TextRow] = []
        self._wait_until_empty = False
        """After texts that had no room beside those that run: these come to their end first."""
        self._num_unchecked = 0
        self._started = 0.0
        self._parts: dict[int, dict[int, list[Generated]]] = {}
        self._done: list[tuple[int, Result]] = []

    @property
    def capacity(self) -> int:
        """How many texts are decoded at a time, at the most."""
        return self.size.size if self.room is None else min(self.size.size, self.room)

    @property
    def num_pending(self) -> int:
        """How many texts wait or run."""
        return len(self.waiting) + len(self.running)

    def add(self, rows: Iterable[TextRow]) -> None:
        """Queue texts, to be begun in this order."""
        self.waiting.extend(rows)

    def fail(self, ticket: int, error: ImageError) -> None:
        """Give out an error as the result of a prompt that cannot be tried."""
        self._done.append((ticket, error))

    def advance(self) -> list[tuple[int, Result]]:
        """Begin texts where there is room, take one step with all, and return the results that are complete."""
        self._refill()
        if self.running:
            self._step()
        done, self._done = self._done, []
        return done

    def _refill(self) -> None:
        """Begin as many waiting texts as there is room for; one or two of many are not worth a prefill of their own."""
        while self.waiting:
            num_running = len(self.running)
            if num_running == 0:
                self._wait_until_empty = False
            num_free = 0 if self._wait_until_empty else self.capacity - num_running
            if num_free < (min(len(self.waiting), -(-self.capacity // 8)) if num_running else 1):
                return
            if self._num_unchecked:
                self._check()
                continue
            group = [self.waiting.popleft() for _ in range(min(num_free, len(self.waiting)))]
            try:
                with memory_errors():
                    self._begin(group)
            except MemoryError as error:
                detail = f"the model has no room for it: {error}"
            else:
                self._check()
                continue
            # Outside `except`: there the error would still hold the tensors that did not fit.
            del self.running[num_running:]
            self.search.keep(range(num_running))
            self.slots.free(num_running)
            if num_running:
                self.waiting.extendleft(reversed(group))
                self._wait_until_empty = True
            else:
                self._retreat(group, detail)

    def _retreat(self, group: list[TextRow], detail: str) -> None:
        """After texts that did not fit a device that had nothing else to do: try half of them, or give up the only one.

        A text is only given up if the cache was as small as can be.
        """
        was_least = self.slots.num_slots <= 1
        self.slots.clear()
        if len(group) > 1 or not was_least:
            self.waiting.extendleft(reversed(group))
            self.room = max(1, len(group) // 2)
            return
        ticket = group[0].ticket
        self._parts.pop(ticket, None)
        self.waiting = deque(row for row in self.waiting if row.ticket != ticket)
        self.fail(ticket, ImageError("out_of_memory", detail))
        self.room = None  # it was this text that is too large, not the number of them

    def _begin(self, group: list[TextRow]) -> None:
        """Prefill texts into free slots, and choose their first tokens."""
        beams, num_running = self.search.num_beams, len(self.running)
        group = sorted(group, key=lambda row: row.tokens.lengths)
        num_prefix = self.network.num_query_tokens + max(len(row.tokens.ids) for row in group)
        cache = self.slots.reserve(num_running, num_running + len(group), num_prefix, self.capacity)
        rows = self.slots.rows(num_running, num_running + len(group))
        with self.network.watch.measure("prefill"):
            image_IQD, image_of_N = self.network.image_embeddings(group)
            by_length = itertools.groupby((row.tokens.ids for row in group), key=len)
            prompts = [torch.tensor(list(ids), dtype=torch.long, device=self.device) for _, ids in by_length]
            logits_NV = self.decoder.prefill(image_IQD, image_of_N, prompts, cache, rows.start, beams)
            if beams > 1:
                logits_NV = logits_NV.repeat_interleave(beams, dim=0)
            self.search.start([Start(history=self.network.history(row.tokens), seed=row.seed) for row in group])
            self.running += group
            num_given = [self._num_given(row) for row in group for _ in range(beams)]
            self.slots.positions_N[rows] = torch.tensor(num_given, device=self.device)
            self.slots.ids_N[rows], _ = self.search.choose(logits_NV, num_running)

    def _step(self) -> None:
        """Run one token of every text, and choose the next."""
        if self._num_unchecked == 0:
            self._started = time.perf_counter()
        try:
            with memory_errors(), self.network.watch.measure("step"):
                self._advance_rows()
        except MemoryError as error:
            detail = f"the model has no room for it: {error}"
        else:
            self._num_unchecked += 1
            longest = max(text.num_chosen for text in self.search.texts)
            if self._num_unchecked >= self.check_every or longest >= self.options.max_new_tokens:
                num_pending, num_steps = len(self.running), self._num_unchecked
                self._check()
                self.size.measured(num_pending, (time.perf_counter() - self._started) / num_steps)
            return
        group, self.running, self._num_unchecked = self.running, [], 0
        self.search.keep([])
        self._retreat(group, detail)

    def _advance_rows(self) -> None:
        slots, rows = self.slots, self.slots.rows(0, len(self.running))
        stepped = slots.rows(0, slots.round_up(len(self.running)))
        assert slots.cache is not None
        num_given = [self._num_given(row) for row in self.running]
        end = max(given + text.num_chosen for given, text in zip(num_given, self.search.texts, strict=True))
        logits_NV = self.decoder.step(slots.ids_N[stepped], slots.positions_N[stepped], slots.cache, end)[rows]
        slots.ids_N[rows], parents_N = self.search.choose(logits_NV, 0)
        slots.positions_N[rows] += 1
        if parents_N is not None:
            slots.cache.reorder(parents_N, min(num_given), end)

    def _num_given(self, row: TextRow) -> int:
        return self.decoder.num_given(self.network.num_query_tokens + len(row.tokens.ids))

    def _check(self) -> None:
        """See which texts have ended, hand them out and free their slots."""
        self._num_unchecked = 0
        ended = self.search.finished()
        if not ended:
            return
        with self.network.watch.measure("detokenise"):
            for slot in ended:
                texts = [self.network.read_text(ids) for ids in self.search.results(slot)]
                self._deliver(self.running[slot], texts)
        order = self.slots.compact(len(self.running), ended)
        self.running = [self.running[slot] for slot in order]
        self.search.keep(order)
        if not self.running and self.room is not None:
            self.room *= 2  # perhaps it was one long prompt that had no room beside others

    def _deliver(self, row: TextRow, texts: list[Generated]) -> None:
        parts = self._parts.setdefault(row.ticket, {})
        parts[row.copy] = texts
        if sum(len(part) for part in parts.values()) == self.options.num_captions:
            del self._parts[row.ticket]
            self._done.append((row.ticket, [text for copy in sorted(parts) for text in parts[copy]]))
