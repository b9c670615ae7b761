"""Generates texts with transformers' own `generate`, for language models and settings without a lean decoder.

Prompts of equal length run in one group and wait for the longest of their texts. A group that does not fit the memory
is divided in halves.

Shapes: I = images, Q = query tokens, D = hidden size, N = rows, T = tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from transformers import LogitsProcessorList

from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import Result
from blip2cap.models.blip2.sampling import SeededSampling, end_ids, generation_config
from blip2cap.models.blip2.stream import StreamModel, TextRow
from blip2cap.models.device import memory_errors
from blip2cap.records import Generated


class TransformersStream:
    """Generates texts in groups of at most `capacity`."""

    def __init__(self, model: StreamModel, language_model: Any, options: GenerateOptions, *, capacity: int) -> None:
        self.model, self.language_model, self.options, self.capacity = model, language_model, options, capacity
        self.ends = frozenset(end_ids(language_model.generation_config))
        self.waiting: deque[TextRow] = deque()
        self._samples: dict[int, list[Generated]] = {}
        """Finished samples of incomplete results, by ticket."""
        self._failed: set[int] = set()
        """Tickets of prompts with a sample that does not fit the memory."""
        self._done: list[tuple[int, Result]] = []

    @property
    def num_pending(self) -> int:
        """Number of texts that wait."""
        return len(self.waiting)

    def add(self, rows: Iterable[TextRow]) -> None:
        """Queue texts, which start in this order."""
        self.waiting.extend(rows)

    def fail(self, ticket: int, error: ImageError) -> None:
        """Return an error as the result of a prompt, in the next `advance`."""
        self._done.append((ticket, error))

    def ids_so_far(self) -> list[int]:
        """Return nothing: a text is known only at its end."""
        return []

    def advance(self) -> list[tuple[int, Result]]:
        """Generate the next group of texts, and return the results that are complete."""
        if self.waiting:
            lengths = self.waiting[0].tokens.lengths
            group = [row for row in self.waiting if row.tokens.lengths == lengths][: self.capacity]
            taken = {id(row) for row in group}
            self.waiting = deque(row for row in self.waiting if id(row) not in taken)
            self._try(group)
        done, self._done = self._done, []
        return done

    def _try(self, group: list[TextRow]) -> None:
        """Generate a group; if memory runs out, its halves, down to a single text, which fails."""
        try:
            with memory_errors(), self.model.watch.measure("generate"):
                texts = self._generate(group)
        except MemoryError as error:
            detail = f"not enough memory: {error}"
        else:
            self._deliver(group, texts)
            return
        # Outside `except`: there the error would still hold every tensor of the group that did not fit.
        if len(group) > 1:
            self._try(group[: len(group) // 2])
            self._try(group[len(group) // 2 :])
        elif (ticket := group[0].ticket) not in self._failed:  # one result, even if several samples do not fit
            self._failed.add(ticket)
            self._samples.pop(ticket, None)
            self.fail(ticket, ImageError("out_of_memory", detail))

    def _generate(self, group: list[TextRow]) -> list[list[Generated]]:
        image_IQD, image_of_N = self.model.image_embeddings(group)
        ids_NT = torch.tensor([row.tokens.ids for row in group], device=image_IQD.device)
        text_NTD = self.language_model.get_input_embeddings()(ids_NT)
        # In a model spread over several devices, image and text may be on different ones.
        image_NQD = image_IQD[image_of_N.to(image_IQD.device)].to(text_NTD)
        embeds_NTD = torch.cat([image_NQD, text_NTD], dim=1)
        inputs = {
            "inputs_embeds": embeds_NTD,
            "attention_mask": torch.ones(embeds_NTD.shape[:2], dtype=torch.long, device=embeds_NTD.device),
        }
        num_given = 1  # T5 returns its start token first
        if not self.language_model.config.is_encoder_decoder:
            # Decoder-only models return the given ids; n-gram and repetition rules count these, image ids too.
            given_ids = [self.model.given_ids(row.tokens) for row in group]
            inputs["input_ids"] = torch.tensor(given_ids, device=embeds_NTD.device)
            num_given = len(given_ids[0])
        processors = LogitsProcessorList()
        if self.options.sampling:
            seeds_N = torch.tensor([row.seed for row in group], device=embeds_NTD.device)
            processors.append(SeededSampling(self.options, seeds_N))
        output_NT = self.language_model.generate(
            **inputs,
            generation_config=generation_config(self.language_model.generation_config, self.options),
            logits_processor=processors,
        )
        texts = [self.model.read_text(self._truncate(ids)) for ids in output_NT[:, num_given:].tolist()]
        per_row = len(texts) // len(group)
        return [texts[at : at + per_row] for at in range(0, len(texts), per_row)]

    def _truncate(self, ids: list[int]) -> list[int]:
        """Remove the padding after the end token."""
        return ids[: next((index + 1 for index, token in enumerate(ids) if token in self.ends), len(ids))]

    def _deliver(self, group: list[TextRow], texts: list[list[Generated]]) -> None:
        for row, its_texts in zip(group, texts, strict=True):
            if row.ticket in self._failed:
                continue
            samples = self._samples.setdefault(row.ticket, [])
            samples += its_texts  # samples of one prompt are queued and generated in order
            if len(samples) == self.options.num_captions:
                self._done.append((row.ticket, self._samples.pop(row.ticket)))
