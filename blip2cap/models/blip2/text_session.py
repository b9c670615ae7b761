"""The session of a BLIP-2 model: passes prompts to the lean decoder, or to transformers' `generate`."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from blip2cap.batch_size import BatchSize
from blip2cap.decode.image import Pixels
from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import OnText, Result, Session
from blip2cap.models.blip2.attention import decoding_kernels
from blip2cap.models.blip2.beams import Beams
from blip2cap.models.blip2.cache import Slots
from blip2cap.models.blip2.cuda_graphs import GraphedDecoder
from blip2cap.models.blip2.decoders import Decoder
from blip2cap.models.blip2.sampling import end_ids, row_seed
from blip2cap.models.blip2.search import Greedy
from blip2cap.models.blip2.stream import TextRow, TextStream, Tokens
from blip2cap.models.blip2.transformers_generate import TransformersStream
from blip2cap.models.device import free_bytes
from blip2cap.records import Prompt, Turn

if TYPE_CHECKING:
    from blip2cap.models.blip2.model import Blip2

_FIRST = 16
"""Texts decoded at once when measuring begins."""
_MAX_CPU, _MAX_GPU = 128, 512
"""A CPU is bound by arithmetic with far fewer rows; a GPU reads all weights for every step, even of a few rows."""
_MAX_BEAMS_GPU = 1536
"""Beams decoded at once on a GPU."""
_GPU_UNIT = 64
"""On a GPU, larger numbers of texts are multiples of it, as batches of images are: prefills do not fall to pieces."""
_NUM_STEPS = 4
"""Steps that each number of texts is measured with: one step is short, so a single measurement is unreliable."""
_QUICK_S = 0.02
"""Shorter steps are mostly overhead, which more texts share."""
_MAX_TRANSFORMERS = 64
_TYPICAL_PROMPT = 16
"""Number of tokens in a prompt, assumed for the estimate of memory."""


class Workspaces:
    """Caches with their captured steps and measured sizes, which sessions of a model use one after another."""

    def __init__(self) -> None:
        self._idle: list[tuple[Hashable, Slots, BatchSize]] = []
        self._lock = threading.Lock()

    def borrow(self, session: object, key: Hashable, create: Callable[[], tuple[Slots, BatchSize]]) -> Any:
        """Return an idle workspace of the same kind, or a new one; it is idle again when `session` is gone.

        All other idle ones are freed.
        """
        with self._lock:
            match = next((entry for entry in self._idle if entry[0] == key), None)
            self.clear()
        if match is None:
            match = (key, *create())
        _, slots, size = match
        with torch.inference_mode():
            slots.free(0)  # a run may have ended in the middle
        weakref.finalize(session, self._idle.append, match).atexit = False
        return slots, size

    def clear(self) -> None:
        """Free the memory of the idle ones."""
        self._idle.clear()


class TextSession(Session):
    """The texts of one run: prompts are added as their images are encoded, results come as they are ready."""

    def __init__(
        self, model: Blip2, options: GenerateOptions, *, capacity: int | None, on_text: OnText | None = None
    ) -> None:
        self.model, self.options, self._on_text = model, options, on_text
        self.tickets = itertools.count()
        self.stream = self._open_stream(capacity)
        # A method of the model, not of this session: the session would refer to itself, and its memory would be freed
        # by the next garbage collection only.
        self._tokenise = lru_cache(4096)(model.tokenise)

    def _open_stream(self, capacity: int | None) -> TextStream | TransformersStream:
        model, options, device = self.model, self.options, self.model.device
        language_model, decoder = model.network.language_model, model.decoder
        if decoder is None:
            most = min(capacity or _MAX_TRANSFORMERS, _MAX_TRANSFORMERS)
            return TransformersStream(model, language_model, options, capacity=most)

        def create() -> tuple[Slots, BatchSize]:
            stepper = decoder if model.start_capture is None else GraphedDecoder(decoder, model.start_capture)
            few_sizes = not model.on_cpu
            slots = Slots(stepper, options.num_beams, options.max_new_tokens, device, few_sizes=few_sizes)
            return slots, self._size(decoder) if capacity is None else BatchSize(capacity)

        key = (options.num_beams, options.max_new_tokens, capacity, model.start_capture)
        slots, size = model.workspaces.borrow(self, key, create)
        ends = end_ids(language_model.generation_config)
        search = (Beams if options.num_beams > 1 else Greedy)(options, ends, device)
        release, reads_late = model.workspaces.clear, model.reads_late
        return TextStream(model, slots, search, options, device, size=size, reads_late=reads_late, release=release)

    def _size(self, decoder: Decoder) -> BatchSize:
        """Return the number of texts decoded at once, whose cache may take half of the free memory."""
        model, options = self.model, self.options
        num_prefix = model.num_query_tokens + _TYPICAL_PROMPT
        num_bytes = decoder.bytes_per_row(num_prefix, options.max_new_tokens, options.num_beams)
        num_fit = max(1, free_bytes(model.device) // 2 // num_bytes)
        if model.on_cpu:
            most = max(1, min(_MAX_CPU // options.num_beams, num_fit))
            return BatchSize(min(_FIRST, most), most, quick_s=_QUICK_S, num_trials=_NUM_STEPS)
        most = max(1, min(_MAX_GPU, _MAX_BEAMS_GPU // options.num_beams, num_fit))
        most = most // _GPU_UNIT * _GPU_UNIT or most
        return BatchSize(most, most)

    @property
    def capacity(self) -> int:
        """Largest number of texts decoded at once."""
        return self.stream.capacity

    @property
    def num_pending(self) -> int:
        """Number of texts that wait or run."""
        return self.stream.num_pending

    def encode(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Run the vision encoder; return the features of each image. Raises MemoryError if they do not fit."""
        return self.model.encode(images)

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
            tokens = self._tokenise("".join(map(_said, prompt.turns)) + prompt.text)
            error = self._misfit(tokens)
            if error:
                self.stream.fail(ticket, error)
            else:
                self.stream.add(self._rows(ticket, tokens, prompt, images[prompt.image]))
        return tickets

    @torch.inference_mode()
    def advance(self) -> list[tuple[int, Result]]:
        """Run the next step; return the results that are complete, by ticket."""
        with self.model.current(), decoding_kernels(self.model.device):
            results = self.stream.advance()
        if self._on_text is not None and (ids := self.stream.ids_so_far()):
            self._on_text(self.model.read_text(ids).text)
        return results

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


def _said(turn: Turn) -> str:
    """Return an earlier turn in the form of the paper's examples of dialogue (arXiv 2301.12597, figure 4)."""
    return f"Question: {turn.question} Answer: {turn.answer.rstrip('.')}. "
