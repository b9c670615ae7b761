"""A loaded vision-language model: pixels and prompts in, texts out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from blip2cap.decode.image import Pixels
from blip2cap.decode.inputs import ImageInput, ResizedInput
from blip2cap.errors import UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import Checkpoint, OnText, Result, TextModel
from blip2cap.models.blip2.sampling import end_ids, unusual_settings
from blip2cap.models.vlm.chat import VlmChat
from blip2cap.models.vlm.prompts import Prompter
from blip2cap.models.vlm.session import VlmSession
from blip2cap.records import Generated, Prompt
from blip2cap.stopwatch import Stopwatch


class Vlm(TextModel):
    """A network with its processor, on one device or several."""

    quantize: str | None = None
    remark = ""

    def __init__(
        self, network: Any, prompter: Prompter, *, checkpoint: Checkpoint, dtype: torch.dtype, max_pixels: int
    ) -> None:
        self.network, self.prompter, self.checkpoint = network, prompter, checkpoint
        self.device: torch.device = network.device
        self.dtype = dtype
        self.on_cpu = self.device.type == "cpu"
        self.watch = Stopwatch()
        self.is_encoder_decoder = bool(network.config.is_encoder_decoder)
        self.ends = frozenset(end_ids(network.generation_config))
        self._max_pixels = max_pixels
        self.fallback_reason = ""
        unusual = unusual_settings(network.generation_config)
        if self.keeps_cache and unusual:
            self.fallback_reason = f"the checkpoint's generation config sets {', '.join(unusual)}"

    @property
    def image_input(self) -> ImageInput:
        """RGB pixels of any size within --max-pixels."""
        return ResizedInput(self._max_pixels)

    @property
    def num_positions(self) -> int | None:
        """Largest number of tokens of the language model, image and output included; None if it is not known."""
        config = self.network.config.get_text_config(decoder=True)
        positions = getattr(config, "max_position_embeddings", None)
        return None if positions is None else int(positions)

    @property
    def has_plain_cache(self) -> bool:
        """True if the keys and values of all tokens are in plain layers, of which none forgets old tokens."""
        config = self.network.config.get_text_config(decoder=True)
        layers = getattr(config, "layer_types", None) or ()
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return not self.is_encoder_decoder and window is None and set(layers) <= {"full_attention"}

    @property
    def keeps_cache(self) -> bool:
        """True if keys and values of an image can be kept for other texts about it."""
        return self.has_plain_cache and self.prompter.family.shares_images

    def check(self, options: GenerateOptions, prompts: Sequence[str] = ()) -> None:
        """Raise UsageError for options that no prompt can be generated with, and for a prompt with special tokens."""
        if self.num_positions is not None and options.max_new_tokens >= self.num_positions:
            raise UsageError(
                f"--max-new-tokens {options.max_new_tokens}: this model takes at most {self.num_positions} tokens, "
                "image and prompt included. Ask for fewer."
            )
        if options.system is not None and not self.prompter.has_system_turn():
            raise UsageError("--system: the chat template of this model writes no system's turn. Leave it out.")
        for text in (*prompts, *([] if options.system is None else [options.system])):
            token = self.prompter.special_token_in(text)
            if token is not None:
                raise UsageError(f'prompt "{text}": holds {token}, a special token of this model. Leave that out.')

    def current(self) -> AbstractContextManager[Any]:
        """Make its GPU the current one."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def wait(self) -> None:
        """Wait until the device has finished the work it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> VlmSession:
        """Open a session that generates at most `capacity` texts at once; None: a number for the device."""
        return VlmSession(self, options, capacity=capacity)

    def start_chat(self, options: GenerateOptions, *, on_text: OnText) -> VlmChat:
        """Open a session for one prompt at a time."""
        return VlmChat(self, options, on_text)

    def on_device(self, value: torch.Tensor) -> torch.Tensor:
        """Return an input of the network on its device, and in its dtype if it is no integer."""
        value = value.to(self.device)
        return value.to(self.dtype) if value.is_floating_point() else value

    def check_length(self, num_tokens: int, options: GenerateOptions) -> None:
        """Raise ValueError if a prompt of this length and its text are too long for the language model."""
        most = self.num_positions
        if most is not None and not self.is_encoder_decoder and num_tokens + options.max_new_tokens > most:
            raise ValueError(
                f"image and prompt take {num_tokens} tokens, --max-new-tokens {options.max_new_tokens}, together at "
                f"most {most}"
            )

    def generate(
        self,
        images: Sequence[Pixels],
        prompts: Sequence[Prompt],
        options: GenerateOptions,
        *,
        capacity: int | None = None,
    ) -> list[Result]:
        """Answer all prompts about images; return the results in order."""
        texts = self.start_texts(options, capacity=capacity)
        tickets = texts.add(texts.encode(images), prompts)
        results: dict[int, Result] = {}
        while len(results) < len(tickets):
            results.update(texts.advance())
        return [results[ticket] for ticket in tickets]

    def read_text(self, ids: Sequence[int]) -> Generated:
        """Turn new tokens, with what follows the first end token, into a text."""
        length = next((index for index, token in enumerate(ids) if token in self.ends), len(ids))
        tokenizer = self.prompter.tokenizer
        if self.prompter.family.keeps_places:
            text = tokenizer.decode(ids[:length], skip_special_tokens=False)
            for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token):
                text = text.replace(token, "")
        else:
            text = tokenizer.decode(ids[:length], skip_special_tokens=True)
        reason = "stop" if length < len(ids) else "length"
        return Generated(text=text.strip(), num_tokens=length, finish_reason=reason)
