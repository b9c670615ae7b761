"""Prompts in, texts out: chooses between the lean decoder and transformers' `generate`, and says which."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from blip2cap.batch_size import BatchSize
from blip2cap.errors import ImageError
from blip2cap.models.base import Result
from blip2cap.models.blip2.beams import Beams
from blip2cap.models.blip2.graphs import GraphedDecoder
from blip2cap.models.blip2.memory import free_bytes
from blip2cap.models.blip2.sampling import end_ids, row_seed
from blip2cap.models.blip2.search import Greedy
from blip2cap.models.blip2.stream import TextRow, TextStream, Tokens
from blip2cap.models.blip2.transformers_generate import LibraryStream
from blip2cap.options import GenerateOptions
from blip2cap.records import Prompt

if TYPE_CHECKING:
    from blip2cap.models.blip2.model import Blip2

_FIRST = 16
"""Texts decoded at once, while their number is measured."""
_MOST_CPU, _MOST_GPU = 128, 512
"""On a CPU a step is bound by arithmetic long before; a GPU reads all weights for every step of however few rows."""
_NUM_STEPS = 4
"""Steps that a number of texts is measured by: short enough to be disturbed by anything."""
_QUICK_S = 0.02
"""A step as short as this is mostly overhead, which more texts share."""
_MOST_LIBRARY = 64
_USUAL_PROMPT = 16
"""Tokens of a prompt, to reckon memory with before any is known."""


class TextSession:
    """The text side of one run: prompts are added as their images are encoded, results come as they are ready."""

    def __init__(self, model: Blip2, options: GenerateOptions, *, capacity: int | None) -> None:
        self.model, self.options = model, options
        self.tickets = itertools.count()
        self.stream = self._stream(self._measured_size() if capacity is None else BatchSize(capacity))
        # Not a method of this object, which would then keep itself, and its cache, alive until the next collection.
        self._tokenise = lru_cache(4096)(partial(_tokens, model.tokenizer, model.qformer_tokenizer))

    def _stream(self, size: BatchSize) -> TextStream | LibraryStream:
        language_model, options, device = self.model.network.language_model, self.options, self.model.device
        if self.model.decoder is None:
            return LibraryStream(self.model, language_model, options, capacity=min(size.most, _MOST_LIBRARY))
        ends = end_ids(language_model.generation_config)
        search = (Beams if options.num_beams > 1 else Greedy)(options, ends, device)
        decoder = GraphedDecoder(self.model.decoder) if self.model.graphs else self.model.decoder
        check_every = self.model.check_every
        return TextStream(self.model, decoder, search, options, device, size=size, check_every=check_every)

    def _measured_size(self) -> BatchSize:
        most = self._most()
        return BatchSize(min(_FIRST, most), most, quick_s=_QUICK_S, num_trials=_NUM_STEPS)

    def _most(self) -> int:
        """Return how many texts may be decoded at a time at the most: their cache takes half of the free memory."""
        device, decoder = self.model.device, self.model.decoder
        most = _MOST_CPU if device.type == "cpu" else _MOST_GPU
        if decoder is None:
            return most
        num_prefix = self.model.num_query_tokens + _USUAL_PROMPT
        num_bytes = decoder.bytes_per_row(num_prefix, self.options.max_new_tokens) * self.options.num_beams
        return max(1, min(most // self.options.num_beams, free_bytes(device) // 2 // num_bytes))

    @property
    def capacity(self) -> int:
        """How many texts are decoded at a time, at the most."""
        return self.stream.capacity

    @property
    def num_pending(self) -> int:
        """How many texts wait or run."""
        return self.stream.num_pending

    @torch.inference_mode()
    def add(self, features: torch.Tensor, prompts: Sequence[Prompt]) -> list[int]:
        """Queue prompts about images whose features these are; return a ticket for each.

        A prompt that does not fit the language model comes back as an ImageError.
        """
        rows = features.unbind()  # views that are kept: texts of one image are known by it
        tickets = []
        for prompt in prompts:
            ticket = next(self.tickets)
            tickets.append(ticket)
            tokens = self._tokenise(prompt.text)
            error = self._misfit(tokens)
            if error:
                self.stream.fail(ticket, error)
            else:
                self.stream.add(self._rows(ticket, tokens, prompt, rows[prompt.image]))
        return tickets

    @torch.inference_mode()
    def advance(self) -> list[tuple[int, Result]]:
        """Go on with what was added; return the results that are ready, as (ticket, texts best first or error)."""
        with self.model.current():
            return self.stream.advance()

    def _rows(self, ticket: int, tokens: Tokens, prompt: Prompt, image: torch.Tensor) -> Iterator[TextRow]:
        for copy in range(self.options.num_captions if self.options.sampling else 1):
            seed = row_seed(self.options.seed, prompt.name, copy)
            yield TextRow(ticket=ticket, tokens=tokens, image=image, seed=seed, copy=copy)

    def _misfit(self, tokens: Tokens) -> ImageError | None:
        room, num_queries = self.model.num_positions, self.model.num_query_tokens
        if room is None or num_queries + len(tokens.ids) + self.options.max_new_tokens <= room:
            return None
        return ImageError(
            "unsupported",
            f"image, prompt and --max-new-tokens take {num_queries} + {len(tokens.ids)} + "
            f"{self.options.max_new_tokens} tokens, the language model has room for {room}",
        )


def _tokens(tokenizer: PreTrainedTokenizerBase, qformer_tokenizer: PreTrainedTokenizerBase | None, text: str) -> Tokens:
    return Tokens(ids=_ids(tokenizer, text), qformer_ids=_ids(qformer_tokenizer, text) if qformer_tokenizer else [])


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise literally: a special token's name inside a prompt is text like any other."""
    return list(tokenizer(text, split_special_tokens=True, verbose=False).input_ids)
