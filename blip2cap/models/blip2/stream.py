"""Continuous batching: prompts wait, are decoded together, and leave one by one as their texts end.

A free slot in the cache goes to the next prompt at once, so a batch costs the mean length of its texts, not the
longest. Rows never see each other: a text does not depend on the other texts of its batch.

A GPU is given work without waiting for it: the tokens of a step are read when the next step is queued, so the host
learns one step late that a text has ended.

After the device has run out of memory, fewer texts are decoded at once, and the interrupted texts start again, with the
same result. The result of a text that does not fit alone is an ImageError.

Shapes: I = images, Q = query tokens, D = hidden size, N = texts, T = tokens of a prompt.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from blip2cap.batch_size import BatchSize
from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import Result
from blip2cap.models.blip2.cache import Slots
from blip2cap.models.blip2.search import Results, Search, Start
from blip2cap.models.blip2.transfer import to_device
from blip2cap.models.device import memory_errors
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
        slots: Slots,
        search: Search,
        options: GenerateOptions,
        device: torch.device,
        *,
        size: BatchSize,
        reads_late: bool = False,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.search, self.options, self.device = model, search, options, device
        self.slots, self.decoder = slots, slots.decoder
        self.size = size
        """Number of texts decoded at once."""
        self.memory_limit: int | None = None
        """Number of texts that fit the device's memory; None until it runs out."""
        self.reads_late = reads_late
        """Read the tokens of a step only when the next one is queued, so that the device never waits for the host."""
        self.release = release
        """Frees memory of others, after out-of-memory."""
        self.waiting: deque[TextRow] = deque()
        self.running: list[TextRow] = []
        self._wait_until_empty = False
        """After out-of-memory, finish the running texts before admitting more."""
        self._taken: list[tuple[list[TextRow], Results]] = []
        """Texts that have left their slots, whose results are on their way to the host."""
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

    def ids_so_far(self) -> list[int]:
        """Return the tokens of the first running text that were read so far; none with beams."""
        return self.search.texts[0].ids if self.running else []

    def advance(self) -> list[tuple[int, Result]]:
        """Run one step of all texts, start texts in free slots, and return the results that are complete."""
        num_due = len(self._taken)  # the step reads their last tokens
        if self.running:
            self._step()
        self._refill()
        if not (self.reads_late and self.running):
            self.search.read()
            num_due = len(self._taken)
        due, self._taken = self._taken[:num_due], self._taken[num_due:]
        if due:  # after the device was given work, as this takes the host long
            with self.model.watch.measure("detokenise"):
                for rows, results in due:
                    for row, texts in zip(rows, results(), strict=True):
                        self._deliver(row, [self.model.read_text(ids) for ids in texts])
        done, self._done = self._done, []
        return done

    def _refill(self) -> None:
        """Start waiting texts in free slots, unless the free slots are too few to be worth a prefill."""
        while self.waiting:
            num_running, worthwhile = len(self.running), -(-self.capacity // 8)
            if num_running == 0:
                self._wait_until_empty = False
            num_free = 0 if self._wait_until_empty else self.capacity - num_running
            if num_free < (min(len(self.waiting), worthwhile) if num_running else 1):
                return
            num_started = min(num_free, len(self.waiting))
            if self.slots.few_sizes and num_started > worthwhile:
                num_started = worthwhile << (num_started // worthwhile).bit_length() - 1
            group = [self.waiting.popleft() for _ in range(num_started)]
            try:
                with memory_errors():
                    self._start(group)
                    if not self.reads_late:
                        self.search.read()
                    self._take_finished()
            except MemoryError as error:
                detail = f"not enough memory: {error}"
            else:
                continue
            # Outside `except`: there the error would still hold the tensors that did not fit.
            del self.running[num_running:]
            self.search.keep(range(num_running))
            self.slots.free(num_running)
            self.release()
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
        num_running, num_used = len(self.running), len(self.running) + len(group)
        group = sorted(group, key=lambda row: row.tokens.lengths)
        num_prefix = self.model.num_query_tokens + max(len(row.tokens.ids) for row in group)
        cache = self.slots.reserve(num_running, num_used, num_prefix, self.capacity)
        with self.model.watch.measure("prefill"):
            image_IQD, image_of_N = self.model.image_embeddings(group)
            by_length = itertools.groupby((row.tokens.ids for row in group), key=len)
            prompts = [to_device(list(ids), self.device) for _, ids in by_length]
            logits_NV = self.decoder.prefill(image_IQD, image_of_N, prompts, cache, num_running)
            if self.search.num_beams > 1:
                logits_NV = logits_NV.repeat_interleave(self.search.num_beams, dim=0)
            self.search.start([Start(given_ids=self.model.given_ids(row.tokens), seed=row.seed) for row in group])
            self.running += group
            num_given = [self._num_given(row) for row in group]
            self.slots.positions_R[num_running:num_used] = to_device(num_given, self.device)
            ids_N, _ = self.search.choose(logits_NV, num_running)
            self.slots.ids_RB[num_running:num_used] = ids_N.view(len(group), -1)

    def _step(self) -> None:
        """Run one token of every text and choose the next, or retreat if memory runs out."""
        num_running, started = len(self.running), time.perf_counter()
        try:
            with memory_errors(), self.model.watch.measure("step"):
                self._advance_rows()
                self.search.read(leave=int(self.reads_late))
                self._take_finished()
        except MemoryError as error:
            detail = f"not enough memory: {error}"
        else:
            self.size.measured(num_running, time.perf_counter() - started)
            return
        self.search.read()  # tokens of earlier steps, of texts that have left
        group, self.running = self.running, []
        self.search.keep([])
        self.release()
        self._retreat(group, detail)

    def _advance_rows(self) -> None:
        slots, num_running, beams = self.slots, len(self.running), self.search.num_beams
        num_stepped = slots.round_up(num_running)
        assert slots.cache is not None
        texts = zip(self.running, self.search.texts, strict=True)
        end = max(self._num_given(row) + text.num_chosen * beams for row, text in texts)
        ids_N, positions_M = slots.ids_RB[:num_stepped].view(-1), slots.positions_R[:num_stepped]
        logits_NV = self.decoder.step(ids_N, positions_M, slots.cache, end)[: num_running * beams]
        ids_N, parents_MB = self.search.choose(logits_NV, 0)
        slots.ids_RB[:num_running] = ids_N.view(num_running, -1)
        slots.positions_R[:num_running] += 1
        if parents_MB is not None:
            slots.cache.reorder(parents_MB)

    def _num_given(self, row: TextRow) -> int:
        return self.decoder.num_given(self.model.num_query_tokens + len(row.tokens.ids))

    def _take_finished(self) -> None:
        """Free the slots of the texts that have ended."""
        ended = self.search.finished()
        if not ended:
            return
        taken = [self.running[slot] for slot in ended], self.search.take(ended)
        order = self.slots.compact(len(self.running), ended)  # needs memory: nothing has changed if there is none
        self.search.keep(order)  # so does this
        self._taken.append(taken)
        self.running = [self.running[slot] for slot in order]
        if not self.running and self.memory_limit is not None:
            self.memory_limit *= 2  # perhaps one long prompt was to blame, not the number of texts

    def _deliver(self, row: TextRow, texts: list[Generated]) -> None:
        samples = self._samples.setdefault(row.ticket, {})
        samples[row.copy] = texts
        if sum(len(sample) for sample in samples.values()) == self.options.num_captions:
            del self._samples[row.ticket]
            self._done.append((row.ticket, [text for copy in sorted(samples) for text in samples[copy]]))
