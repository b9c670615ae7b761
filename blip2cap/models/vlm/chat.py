"""A conversation about one image: keys and values of all that was said stay, so a turn costs its own tokens.

Where keys and values cannot be kept (`Vlm.keeps_cache`), the image is computed again in every turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from blip2cap.decode.image import Pixels
from blip2cap.errors import ImageError, UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import OnText, Result, Session
from blip2cap.models.blip2.sampling import SeededSampling, generation_config, row_seed
from blip2cap.models.device import memory_errors
from blip2cap.models.vlm.prompts import PROCESSOR_ERRORS, NotTakenError
from blip2cap.records import Prompt

if TYPE_CHECKING:
    from blip2cap.models.vlm.model import Vlm


@dataclass(slots=True, eq=False)
class ChatImage:
    """An image, and what is known of the conversation about it."""

    pixels_HWC: Pixels
    ids: list[int] = field(default_factory=list)
    """Tokens of the conversation so far."""
    cache: Any = None
    """Keys and values of these tokens; None if they are not kept."""


class VlmChat(Session):
    """A session for one prompt at a time."""

    capacity = 1

    def __init__(self, model: Vlm, options: GenerateOptions, on_text: OnText) -> None:
        self.model, self.options, self._on_text = model, options, on_text
        self._waiting: list[tuple[int, ChatImage, Prompt]] = []
        self._num_added = 0

    @property
    def num_pending(self) -> int:
        """Number of prompts that wait."""
        return len(self._waiting)

    def encode(self, images: Sequence[Pixels]) -> list[ChatImage]:
        """Return the images, of which nothing is known yet."""
        return [ChatImage(pixels_HWC) for pixels_HWC in images]

    def add(self, features: Sequence[ChatImage], prompts: Sequence[Prompt]) -> list[int]:
        """Queue prompts about images; return a ticket for each."""
        tickets = list(range(self._num_added, self._num_added + len(prompts)))
        self._num_added += len(prompts)
        self._waiting += [(ticket, features[each.image], each) for ticket, each in zip(tickets, prompts, strict=True)]
        return tickets

    @torch.inference_mode()
    def advance(self) -> list[tuple[int, Result]]:
        """Generate the answer to the oldest prompt, and return it."""
        if not self._waiting:
            return []
        ticket, image, prompt = self._waiting.pop(0)
        token = self.model.prompter.special_token_in(prompt.text)
        if token is not None:
            raise UsageError(f"the question holds {token}, a special token of this model. Leave that out.")
        try:
            with self.model.current(), memory_errors():
                return [(ticket, self._answer(image, prompt))]
        except MemoryError as error:
            failure = ImageError("out_of_memory", f"not enough memory: {error}")
        except (NotTakenError, ValueError) as error:
            failure = ImageError("unsupported", f"the model does not take the image with this question: {error}")
        return [(ticket, failure)]

    def _answer(self, image: ChatImage, prompt: Prompt) -> Result:
        model, options = self.model, self.options
        text = model.prompter.write(prompt.text, options.system, prompt.turns)
        try:
            inputs = model.prompter.inputs([image.pixels_HWC], [text])
        except PROCESSOR_ERRORS as error:
            raise NotTakenError(str(error)) from error
        inputs = {name: model.on_device(value) for name, value in inputs.items()}
        ids = inputs["input_ids"][0].tolist()
        model.check_length(len(ids), options)
        known, cache = self._known(image, ids), image.cache
        num_kept, image.ids, image.cache = len(image.ids), [], None  # whatever ends the generation has changed them
        if known:
            if known < num_kept:
                cache.crop(known - num_kept)  # below 0: the number of tokens to remove
            inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
            inputs["past_key_values"] = cache
        processors = LogitsProcessorList()
        if options.sampling:
            seed = row_seed(options.seed, prompt.name, 0)
            processors.append(SeededSampling(options, torch.tensor([seed], device=model.device)))
        config = generation_config(model.network.generation_config, options)
        config.return_dict_in_generate = True
        output = model.network.generate(
            **inputs,
            generation_config=config,
            logits_processor=processors,
            streamer=_Growing(self) if options.num_beams == 1 else None,
        )
        sequence = output.sequences[0].tolist()
        # transformers remembers where texts go on in the network: for the last image alone.
        if model.keeps_cache and not model.prompter.family.has_grid_positions and options.num_beams == 1:
            image.cache = output.past_key_values
            image.ids = sequence[: image.cache.get_seq_length()]
        return [model.read_text(sequence[len(ids) :])]

    def _known(self, image: ChatImage, ids: Sequence[int]) -> int:
        """Return the number of first tokens whose keys and values are known; 0 if the image is not among them."""
        if image.cache is None:
            return 0
        pairs = zip(image.ids, ids[:-1], strict=False)  # one token at least must be new
        known = next((at for at, (old, new) in enumerate(pairs) if old != new), min(len(image.ids), len(ids) - 1))
        image_ids = {*self.model.prompter.tokenizer.convert_tokens_to_ids([*self.model.prompter.image_tokens])}
        last = max((at for at, token in enumerate(ids) if token in image_ids), default=0)
        return known if known > last else 0

    def show(self, ids: Sequence[int]) -> None:
        """Tell the text so far."""
        self._on_text(self.model.read_text(ids).text)


class _Growing(BaseStreamer):
    """Tells the text of each step."""

    def __init__(self, chat: VlmChat) -> None:
        self._chat = chat
        self._ids: list[int] | None = None
        """New tokens; None before the prompt, which comes first."""

    def put(self, value: torch.Tensor) -> None:
        """Add the token of a step."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.reshape(-1).tolist()
        self._chat.show(self._ids)

    def end(self) -> None:
        """Do nothing: the answer is returned."""
