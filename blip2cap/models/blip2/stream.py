"""Continuous batching: prompts wait, are decoded together, and leave one by one as their texts end.

A free slot in the cache goes to the next prompt at once, so a batch costs the mean length of its texts, not the
longest. Rows never see each other: a text does not depend on the other texts of its batch.

After the device has run out of memory, fewer texts are decoded at once, and the interrupted texts start again, with the
same result. The result of a text that does not fit alone is an ImageError.

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
from blip2cap.models.blip2.cache import Slots
from blip2cap.models.blip2.decoders import Decoder
from blip2cap.models.blip2.search import Search, Start
from blip2cap.models.device import memory_errors
from blip2cap.options import GenerateOptions
from blip2cap.records import Generated
from blip2cap.stopwatch import Stopwatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """A prompt as token ids."""

    ids: list[int]
    qformer_ids: list[int]
    """Ids for InstructBLIP's Q-Former, which reads the instruction too; empty for BLIP-2."""

    @property
    def lengths(self) -> tuple[int, int]:
        """Prompts run in one batch only if these are equal: nothing is ever padded."""
        return len(self.ids), len(self.qformer_ids)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextRow:
    """One text to generate."""

    ticket: int
    """Ticket of its result; all samples of one prompt share it."""
    tokens: Tokens
    image: torch.Tensor
    """Features of its image, [Q, D], or [patches, D] for InstructBLIP; texts of one image share the tensor."""
    seed: int
    copy: int = 0
    """Number of this sample among those of its prompt."""


class StreamModel(Protocol):
    """The parts of a model that a stream uses besides the decoder."""

    watch: Stopwatch
    num_query_tokens: int

    def image_embeddings(self, rows: Sequence[TextRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the language model sees of the images of rows, [I, Q, D], and the image of each row, [N]."""

    def given_ids(self, tokens: Tokens) -> list[int]:
        """Return the ids before the first new token, for repetition rules."""

    def read_text(self, ids: list[int]) -> Generated:
        """Turn new tokens into a text."""


class TextStream:
    """Decodes texts with a lean decoder."""

    def __init__(
        self,
        model: StreamModel,
        decoder: Decoder,
        search: Search,
        options: GenerateOptions,
        device: torch.device,
        *,
        size: BatchSize,
        check_every: int = 1,
    ) -> None:
        self.model, self.decoder, self.search, self.options, self.device = model, decoder, search, options, device
        self.size = size
        """Number of texts decoded at once."""
        self.memory_limit: int | None = None
        """Number of texts that fit the device's memory; None until it runs out."""
        self.check_every = check_every
        """Steps between checks for ended texts: a check waits for the device."""
        self.slots = Slots(decoder, search.num_beams, options.max_new_tokens, device)
        self.waiting: deque[TextRow] = deque()
        self.running: list[TextRow] = []
        self._wait_until_empty = False
        """After out-of-memory, finish the running texts before admitting more."""
        self._num_unchecked = 0
        self._started_at = 0.0
        self._samples: dict[int, dict[int, list[Generated]]] = {}
        """Finished samples of incomplete results, by ticket and number of the sample."""
        self._done: list[tuple[int, Result]] = []

    @property
    def capacity(self) -> int:
        """Largest number of texts decoded at once."""
        return self.size.size if self.memory_limit is None else min(self.size.size, self.memory_limit)

    @property
    def num_pending(self) -> int:
        """Number of texts that wait or run."""
        return len(self.waiting) + len(self.running)

    def add(self, rows: Iterable[TextRow]) -> None:
        """Queue texts, which start in this order."""
        self.waiting.extend(rows)

    def fail(self, ticket: int, error: ImageError) -> None:
        """Return an error as the result of a prompt, in the next `advance`."""
        self._done.append((ticket, error))

    def advance(self) -> list[tuple[int, Result]]:
        """Start texts in free slots, run one step of all texts, and return the results that are complete."""
        self._refill()
        if self.running:
            self._step()
        done, self._done = self._done, []
        return done

    def _refill(self) -> None:
        """Start waiting texts in free slots, unless the free slots are too few to be worth a prefill."""
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
                    self._start(group)
            except MemoryError as error:
                detail = f"not enough memory: {error}"
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
        """Start again with half of the texts, which ran out of memory alone on the device, or fail the only one.

        A text fails only if the cache had its smallest size.
        """
        was_smallest = self.slots.num_slots <= 1
        self.slots.clear()
        if len(group) > 1 or not was_smallest:
            self.waiting.extendleft(reversed(group))
            self.memory_limit = max(1, len(group) // 2)
            return
        ticket = group[0].ticket
        self._samples.pop(ticket, None)
        self.waiting = deque(row for row in self.waiting if row.ticket != ticket)
        self.fail(ticket, ImageError("out_of_memory", detail))
        self.memory_limit = None  # this text is too large, not the number of texts

    def _start(self, group: list[TextRow]) -> None:
        """Prefill texts into free slots, and choose their first tokens."""
        beams, num_running = self.search.num_beams, len(self.running)
        group = sorted(group, key=lambda row: row.tokens.lengths)
        num_prefix = self.model.num_query_tokens + max(len(row.tokens.ids) for row in group)
        cache = self.slots.reserve(num_running, num_running + len(group), num_prefix, self.capacity)
        rows = self.slots.rows(num_running, num_running + len(group))
        with self.model.watch.measure("prefill"):
            image_IQD, image_of_N = self.model.image_embeddings(group)
            by_length = itertools.groupby((row.tokens.ids for row in group), key=len)
            prompts = [torch.tensor(list(ids), dtype=torch.long, device=self.device) for _, ids in by_length]
            logits_NV = self.decoder.prefill(image_IQD, image_of_N, prompts, cache, rows.start, beams)
            if beams > 1:
                logits_NV = logits_NV.repeat_interleave(beams, dim=0)
            self.search.start([Start(given_ids=self.model.given_ids(row.tokens), seed=row.seed) for row in group])
            self.running += group
            num_given = [self._num_given(row) for row in group for _ in range(beams)]
            self.slots.positions_N[rows] = torch.tensor(num_given, device=self.device)
            self.slots.ids_N[rows], _ = self.search.choose(logits_NV, num_running)

    def _step(self) -> None:
        """Run one token of every text and choose the next, or retreat if memory runs out."""
        if self._num_unchecked == 0:
            self._started_at = time.perf_counter()
        try:
            with memory_errors(), self.model.watch.measure("step"):
                self._advance_rows()
        except MemoryError as error:
            detail = f"not enough memory: {error}"
        else:
            self._num_unchecked += 1
            longest = max(text.num_chosen for text in self.search.texts)
            if self._num_unchecked >= self.check_every or longest >= self.options.max_new_tokens:
                num_pending, num_steps = len(self.running), self._num_unchecked
                self._check()
                self.size.measured(num_pending, (time.perf_counter() - self._started_at) / num_steps)
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
        return self.decoder.num_given(self.model.num_query_tokens + len(row.tokens.ids))

    def _check(self) -> None:
        """Deliver the texts that have ended, and free their slots."""
        self._num_unchecked = 0
        ended = self.search.finished()
        if not ended:
            return
        with self.model.watch.measure("detokenise"):
            for slot in ended:
                texts = [self.model.read_text(ids) for ids in self.search.results(slot)]
                self._deliver(self.running[slot], texts)
        order = self.slots.compact(len(self.running), ended)
        self.running = [self.running[slot] for slot in order]
        self.search.keep(order)
        if not self.running and self.memory_limit is not None:
            self.memory_limit *= 2  # perhaps one long prompt was to blame, not the number of texts

    def _deliver(self, row: TextRow, texts: list[Generated]) -> None:
        samples = self._samples.setdefault(row.ticket, {})
        samples[row.copy] = texts
        if sum(len(sample) for sample in samples.values()) == self.options.num_captions:
            del self._samples[row.ticket]
            self._done.append((row.ticket, [text for copy in sorted(samples) for text in samples[copy]]))
