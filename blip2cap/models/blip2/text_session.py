"""The session of a BLIP-2 model: passes prompts to the lean decoder, or to transformers' `generate`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from blip2cap.batch_size import BatchSize
from blip2cap.errors import ImageError
from blip2cap.models.base import Result, Session
from blip2cap.models.blip2.beams import Beams
from blip2cap.models.blip2.cuda_graphs import GraphedDecoder
from blip2cap.models.blip2.sampling import end_ids, row_seed
from blip2cap.models.blip2.search import Greedy
from blip2cap.models.blip2.stream import TextRow, TextStream, Tokens
from blip2cap.models.blip2.transformers_generate import TransformersStream
from blip2cap.models.device import free_bytes
from blip2cap.options import GenerateOptions
from blip2cap.records import Prompt

if TYPE_CHECKING:
    from blip2cap.models.blip2.model import Blip2

_FIRST = 16
"""Texts decoded at once when measuring begins."""
_MAX_CPU, _MAX_GPU = 128, 512
"""A CPU is bound by arithmetic with far fewer rows; a GPU reads all weights for every step, even of a few rows."""
_NUM_STEPS = 4
"""Steps that each number of texts is measured with: one step is short, so a single measurement is unreliable."""
_QUICK_S = 0.02
"""Shorter steps are mostly overhead, which more texts share."""
_MAX_TRANSFORMERS = 64
_TYPICAL_PROMPT = 16
"""Number of tokens in a prompt, assumed for the estimate of memory."""


class TextSession(Session):
    """The texts of one run: prompts are added as their images are encoded, results come as they are ready."""

    def __init__(self, model: Blip2, options: GenerateOptions, *, capacity: int | None) -> None:
        self.model, self.options = model, options
        self.tickets = itertools.count()
        if capacity is None:
            most = self._max_texts()
            size = BatchSize(min(_FIRST, most), most, quick_s=_QUICK_S, num_trials=_NUM_STEPS)
        else:
            size = BatchSize(capacity)
        self.stream = self._open_stream(size)
        # A method of the model, not of this session: the session would refer to itself, and its memory would be freed
        # by the next garbage collection only.
        self._tokenise = lru_cache(4096)(model.tokenise)

    def _open_stream(self, size: BatchSize) -> TextStream | TransformersStream:
        language_model, options, device = self.model.network.language_model, self.options, self.model.device
        if self.model.decoder is None:
            return TransformersStream(self.model, language_model, options, capacity=min(size.most, _MAX_TRANSFORMERS))
        ends = end_ids(language_model.generation_config)
        search = (Beams if options.num_beams > 1 else Greedy)(options, ends, device)
        decoder = GraphedDecoder(self.model.decoder) if self.model.graphs else self.model.decoder
        check_every = self.model.check_every
        return TextStream(self.model, decoder, search, options, device, size=size, check_every=check_every)

    def _max_texts(self) -> int:
        """Return the largest number of texts decoded at once: their cache may take half of the free memory."""
        device, decoder = self.model.device, self.model.decoder
        most = _MAX_CPU if device.type == "cpu" else _MAX_GPU
        if decoder is None:
            return most
        num_prefix = self.model.num_query_tokens + _TYPICAL_PROMPT
        num_bytes = decoder.bytes_per_row(num_prefix, self.options.max_new_tokens) * self.options.num_beams
        return max(1, min(most // self.options.num_beams, free_bytes(device) // 2 // num_bytes))

    @property
    def capacity(self) -> int:
        """Largest number of texts decoded at once."""
        return self.stream.capacity

    @property
    def num_pending(self) -> int:
        """Number of texts that wait or run."""
        return self.stream.num_pending

    @torch.inference_mode()
    def add(self, features: torch.Tensor, prompts: Sequence[Prompt]) -> list[int]:
        """Queue prompts about images, given the features of the images; return a ticket for each prompt.

        The result of a prompt that does not fit the language model is an ImageError.
        """
        images = features.unbind()  # views that are kept: texts of one image are recognised by them
        tickets = []
        for prompt in prompts:
            ticket = next(self.tickets)
            tickets.append(ticket)
            tokens = self._tokenise(prompt.text)
            error = self._misfit(tokens)
            if error:
                self.stream.fail(ticket, error)
            else:
                self.stream.add(self._rows(ticket, tokens, prompt, images[prompt.image]))
        return tickets

    @torch.inference_mode()
    def advance(self) -> list[tuple[int, Result]]:
        """Run the next step; return the results that are complete, by ticket."""
        with self.model.current():
            return self.stream.advance()

    def _rows(self, ticket: int, tokens: Tokens, prompt: Prompt, image: torch.Tensor) -> Iterator[TextRow]:
        for copy in range(self.options.num_captions if self.options.sampling else 1):
            seed = row_seed(self.options.seed, prompt.name, copy)
            yield TextRow(ticket=ticket, tokens=tokens, image=image, seed=seed, copy=copy)

    def _misfit(self, tokens: Tokens) -> ImageError | None:
        num_positions, num_queries = self.model.num_positions, self.model.num_query_tokens
        if num_positions is None or num_queries + len(tokens.ids) + self.options.max_new_tokens <= num_positions:
            return None
        return ImageError(
            "unsupported",
            f"image, prompt and --max-new-tokens take {num_queries} + {len(tokens.ids)} + "
            f"{self.options.max_new_tokens} tokens, the language model takes at most {num_positions}",
        )
