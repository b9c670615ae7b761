"""The text side through transformers' own `generate`: for language models and settings without a lean decoder here.

Prompts of equal length go through together and wait for the longest of their texts. Memory errors halve the group.

Shapes: I = images, Q = query tokens, D = hidden size, N = rows, T = tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from transformers import LogitsProcessorList

from blip2cap.errors import ImageError
from blip2cap.models.base import Result
from blip2cap.models.blip2.memory import memory_errors
from blip2cap.models.blip2.sampling import SeededSampling, end_ids, generation_config
from blip2cap.models.blip2.stream import Network, TextRow
from blip2cap.options import GenerateOptions
from blip2cap.records import Generated


class LibraryStream:
    """Generates texts a group at a time; at most `capacity` together."""

    def __init__(self, network: Network, language_model: Any, options: GenerateOptions, *, capacity: int) -> None:
        self.network, self.language_model, self.options, self.capacity = network, language_model, options, capacity
        self.ends = frozenset(end_ids(language_model.generation_config))
        self.waiting: deque[TextRow] = deque()
        self._parts: dict[int, list[Generated]] = {}
        self._given_up: set[int] = set()
        self._done: list[tuple[int, Result]] = []

    @property
    def num_pending(self) -> int:
        """How many texts wait."""
        return len(self.waiting)

    def add(self, rows: Iterable[TextRow]) -> None:
        """Queue texts, to be begun in this order."""
        self.waiting.extend(rows)

    def fail(self, ticket: int, error: ImageError) -> None:
        """Give out an error as the result of a prompt that cannot be tried."""
        self._done.append((ticket, error))

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
        """Generate a group; when memory runs out, its halves, down to one text that does not fit alone."""
        try:
            with memory_errors(), self.network.watch.measure("generate"):
                texts = self._generate(group)
        except MemoryError as error:
            detail = f"the model has no room for it: {error}"
        else:
            self._deliver(group, texts)
            return
        # Outside `except`: there the error would still hold every tensor of the group that did not fit.
        if len(group) > 1:
            self._try(group[: len(group) // 2])
            self._try(group[len(group) // 2 :])
        else:
            self._give_up(group[0].ticket, detail)

    def _give_up(self, ticket: int, detail: str) -> None:
        """Fail a prompt, once however many of its samples have no room."""
        self._parts.pop(ticket, None)
        if ticket not in self._given_up:
            self._given_up.add(ticket)
            self.fail(ticket, ImageError("out_of_memory", detail))

    def _generate(self, group: list[TextRow]) -> list[list[Generated]]:
        image_IQD, image_of_N = self.network.image_embeddings(group)
        ids_NT = torch.tensor([row.tokens.ids for row in group], device=image_IQD.device)
        text_NTD = self.language_model.get_input_embeddings()(ids_NT)
        # Spread over several devices, image and text may come from different ones.
        image_NQD = image_IQD[image_of_N.to(image_IQD.device)].to(text_NTD)
        embeds_NTD = torch.cat([image_NQD, text_NTD], dim=1)
        inputs = {
            "inputs_embeds": embeds_NTD,
            "attention_mask": torch.ones(embeds_NTD.shape[:2], dtype=torch.long, device=embeds_NTD.device),
        }
        num_given = 1  # T5 answers with its start token first
        if not self.language_model.config.is_encoder_decoder:
            # Decoders repeat what they were given; n-gram and repetition rules count it, the image ids too.
            histories = [self.network.history(row.tokens) for row in group]
            inputs["input_ids"] = torch.tensor(histories, device=embeds_NTD.device)
            num_given = len(histories[0])
        processors = LogitsProcessorList()
        if self.options.sampling:
            seeds_N = torch.tensor([row.seed for row in group], device=embeds_NTD.device)
            processors.append(SeededSampling(self.options, seeds_N))
        output_NT = self.language_model.generate(
            **inputs,
            generation_config=generation_config(self.language_model.generation_config, self.options),
            logits_processor=processors,
        )
        texts = [self.network.read_text(self._cut(ids)) for ids in output_NT[:, num_given:].tolist()]
        each = len(texts) // len(group)
        return [texts[at : at + each] for at in range(0, len(texts), each)]

    def _cut(self, ids: list[int]) -> list[int]:
        """Cut a row behind the token that ends it: what follows is padding."""
        return ids[: next((index + 1 for index, token in enumerate(ids) if token in self.ends), len(ids))]

    def _deliver(self, group: list[TextRow], texts: list[list[Generated]]) -> None:
        for row, its_texts in zip(group, texts, strict=True):
            if row.ticket in self._given_up:
                continue
            parts = self._parts.setdefault(row.ticket, [])
            parts += its_texts  # samples of one prompt are queued, and generated, in their order
            if len(parts) == self.options.num_captions:
                self._done.append((row.ticket, self._parts.pop(row.ticket)))
