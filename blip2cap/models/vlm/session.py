"""The session of a vision-language model: prompts wait, and are generated in batches; of many, those of similar length.

A batch that does not fit the memory is divided in halves; so is one with a prompt that the processor or the network
does not take, until that prompt is alone.

Shapes: N = rows, T = tokens, V = vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessorList

from blip2cap.decode.image import Pixels
from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import Result, Session
from blip2cap.models.blip2.sampling import SeededSampling, generation_config, row_seed
from blip2cap.models.device import memory_errors
from blip2cap.models.vlm.parts import generate_in_parts
from blip2cap.models.vlm.prompts import PROCESSOR_ERRORS, NotTakenError
from blip2cap.models.vlm.shared import SharedPrompts, compute_prefix, share
from blip2cap.records import Generated, Prompt

if TYPE_CHECKING:
    from blip2cap.models.vlm.model import Vlm

_ON_CPU, _ON_GPU = 16, 64
"""Texts generated at once unless the number is given."""
_AHEAD = 4
"""Number of prompts that wait, as a multiple of the capacity: among more, more have the same length."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Row:
    """One text to generate."""

    ticket: int
    """Ticket of its result; all samples of one prompt share it."""
    pixels_HWC: Pixels
    image: int
    """Number of the image in the session."""
    text: str
    """Prompt with the tokens around it."""
    copy: int
    """Number of this sample among those of its prompt."""
    seed: int
    longest: int = 0
    """Number of characters of the longest text about the image."""


class VlmSession(Session):
    """The texts of one run."""

    def __init__(self, model: Vlm, options: GenerateOptions, *, capacity: int | None) -> None:
        self.model, self.options = model, options
        self._capacity = capacity or (_ON_CPU if model.on_cpu else _ON_GPU)
        # transformers does not copy a given cache for beams.
        has_plain_cache = model.keeps_cache and options.num_beams == 1
        # An n-gram may span the padding between the parts, and a penalty counts it.
        has_rules = options.no_repeat_ngram_size > 0 or options.repetition_penalty != 1.0
        self._shares = has_plain_cache and not has_rules
        # With each part transformers would start to count the least number of tokens again.
        self._leaves = has_plain_cache and options.min_new_tokens == 0
        self._tickets = itertools.count()
        self._num_images = 0
        self._waiting: list[_Row] = []
        """In the order in which they came."""
        self._samples: dict[int, dict[int, list[Generated]]] = {}
        """Finished samples of incomplete results, by ticket and number of the sample."""
        self._failed: set[int] = set()
        """Tickets of prompts with a sample that failed."""
        self._done: list[tuple[int, Result]] = []

    @property
    def capacity(self) -> int:
        """Largest number of texts generated at once."""
        return self._capacity

    @property
    def num_pending(self) -> int:
        """Number of texts that wait."""
        return len(self._waiting)

    def encode(self, images: Sequence[Pixels]) -> Sequence[Pixels]:
        """Return the images: the processor takes each together with its prompt."""
        return images

    def add(self, features: Sequence[Pixels], prompts: Sequence[Prompt]) -> list[int]:
        """Queue prompts about images; return a ticket for each. The result of one that cannot be is an ImageError."""
        tickets, rows = [], []
        for prompt in prompts:
            ticket = next(self._tickets)
            tickets.append(ticket)
            token = self.model.prompter.special_token_in(prompt.text)
            if token is not None:
                error = ImageError("unsupported", f"the prompt holds {token}, a special token of this model")
                self._done.append((ticket, error))
                continue
            text = self.model.prompter.write(prompt.text, self.options.system)
            for copy in range(self.options.num_captions if self.options.sampling else 1):
                row = _Row(
                    ticket=ticket,
                    pixels_HWC=features[prompt.image],
                    image=self._num_images + prompt.image,
                    text=text,
                    copy=copy,
                    seed=row_seed(self.options.seed, prompt.name, copy),
                )
                rows.append(row)
        self._num_images += len(features)
        longest: dict[int, int] = {}
        for row in rows:
            longest[row.image] = max(longest.get(row.image, 0), len(row.text))
        for row in rows:
            row.longest = longest[row.image]
        self._waiting += rows
        return tickets

    @torch.inference_mode()
    def advance(self) -> list[tuple[int, Result]]:
        """Generate a batch of texts; return the results that are complete, by ticket."""
        if self._waiting:
            with self.model.current():
                self._try(self._take())
        done, self._done = self._done, []
        return done

    def _take(self) -> list[_Row]:
        """Remove and return a batch: the row that waits longest, and those nearest to it by length."""
        ahead = self._waiting[: _AHEAD * self._capacity]
        by_size = sorted(ahead, key=self._size)
        at = by_size.index(ahead[0])
        start = max(0, min(at - self._capacity // 2, len(by_size) - self._capacity))
        batch = by_size[start : start + self._capacity]
        taken = {id(row) for row in batch}
        self._waiting = [row for row in self._waiting if id(row) not in taken]
        return batch

    def _size(self, row: _Row) -> tuple[int, ...]:
        """Return a value by which rows of similar length are neighbours: first the image, which takes most tokens.

        Rows of one image are neighbours too, where it is computed once for all of them.
        """
        height, width, _ = row.pixels_HWC.shape
        return (height, width, *((row.longest, row.image) if self._shares else ()), len(row.text))

    def _try(self, batch: list[_Row]) -> None:
        """Generate a batch; if it fails, its halves, down to a single text, which fails."""
        try:
            with memory_errors():
                texts = self._generate(batch)
        except MemoryError as error:
            failure = ImageError("out_of_memory", f"not enough memory: {error}")
        except (NotTakenError, ValueError) as error:  # networks raise ValueError where image and tokens do not fit
            failure = ImageError("unsupported", f"the model does not take the image with this prompt: {error}")
        else:
            for row, its_texts in zip(batch, texts, strict=True):
                self._deliver(row, its_texts)
            return
        # Outside `except`: there the error would still hold every tensor of the batch that did not fit.
        if len(batch) > 1:
            if failure.code == "out_of_memory":
                self._capacity = min(self._capacity, len(batch) // 2)
            self._try(batch[: len(batch) // 2])
            self._try(batch[len(batch) // 2 :])
        elif (ticket := batch[0].ticket) not in self._failed:  # one result, even if several samples fail
            self._failed.add(ticket)
            self._samples.pop(ticket, None)
            self._done.append((ticket, failure))

    def _generate(self, batch: list[_Row]) -> list[list[Generated]]:
        """Return the texts of each row: one, or several beams."""
        model, options = self.model, self.options
        images, texts = [row.pixels_HWC for row in batch], [row.text for row in batch]
        processors = LogitsProcessorList()
        if options.sampling:
            seeds_N = torch.tensor([row.seed for row in batch], device=model.device)
            processors.append(SeededSampling(options, seeds_N))
        config = generation_config(model.network.generation_config, options)
        with model.watch.measure("prepare"):
            try:
                shared = share(model.prompter, images, texts) if self._shares else None
                inputs = model.prompter.inputs(images, texts) if shared is None else shared.prefix
            except PROCESSOR_ERRORS as error:
                raise NotTakenError(str(error)) from error
            num_tokens = inputs["input_ids"].shape[1] + (0 if shared is None else shared.ids_NS.shape[1])
            model.check_length(num_tokens, options)
            inputs = {name: model.on_device(value) for name, value in inputs.items()}
        with model.watch.measure("generate"):
            if shared is not None:
                here = (model.on_device(each) for each in (shared.ids_NS, shared.mask_NS, shared.image_of_N))
                ids_NS, mask_NS, image_of_N = here
                shared = SharedPrompts(prefix=inputs, ids_NS=ids_NS, mask_NS=mask_NS, image_of_N=image_of_N)
                inputs = compute_prefix(model.network, shared)
            if self._leaves:
                new = generate_in_parts(model.network, inputs, config, processors, ends=model.ends)
            else:
                output_NT = model.network.generate(**inputs, generation_config=config, logits_processor=processors)
                new = output_NT[:, 1 if model.is_encoder_decoder else num_tokens :].tolist()
        generated = [model.read_text(ids) for ids in new]
        num_each = len(generated) // len(batch)
        return [generated[at : at + num_each] for at in range(0, len(generated), num_each)]

    def _deliver(self, row: _Row, texts: list[Generated]) -> None:
        if row.ticket in self._failed:
            return
        samples = self._samples.setdefault(row.ticket, {})
        samples[row.copy] = texts
        if sum(map(len, samples.values())) == self.options.num_captions:
            del self._samples[row.ticket]
            self._done.append((row.ticket, [text for copy in sorted(samples) for text in samples[copy]]))
