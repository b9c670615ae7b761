"""A loaded BLIP-2: pixels in, texts out.

The vision encoder runs once per image, the language model once per prompt.

Shapes: B = images, H, W = pixels, C = channels, Q = query tokens, D = hidden size, I = images of text rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import (
    Blip2ForConditionalGeneration,
    InstructBlipForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from blip2cap.decode.image import Pixels
from blip2cap.decode.inputs import ImageInput, SquareInput
from blip2cap.errors import UsageError
from blip2cap.models.base import Checkpoint, Result, TextModel
from blip2cap.models.blip2.cuda_graphs import CudaCapture
from blip2cap.models.blip2.decoders import fallback_reason, make_decoder
from blip2cap.models.blip2.resize import choose_resizer
from blip2cap.models.blip2.sampling import end_ids
from blip2cap.models.blip2.stream import TextRow, Tokens
from blip2cap.models.blip2.text_session import TextSession, Workspaces
from blip2cap.models.blip2.transfer import to_device
from blip2cap.models.device import memory_errors
from blip2cap.options import GenerateOptions
from blip2cap.records import Generated, Prompt
from blip2cap.stopwatch import Stopwatch

NETWORK_CLASSES = {"blip-2": Blip2ForConditionalGeneration, "instructblip": InstructBlipForConditionalGeneration}
"""The classes of transformers, by `model_type` in config.json."""


class Blip2(TextModel):
    """A network with its tokenizer, on one device."""

    quantize: str | None = None
    remark = ""

    qformer_tokenizer: PreTrainedTokenizerBase | None = None
    """Tokenizer of the Q-Former; None if the Q-Former does not read the prompt."""

    def __init__(
        self,
        network: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        checkpoint: Checkpoint,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.checkpoint = checkpoint
        self.decoder = make_decoder(network)
        self.fallback_reason = fallback_reason(network)
        self.device: torch.device = network.device
        self.dtype: torch.dtype = network.vision_model.dtype  # in float16 the Q-Former stays in float32
        self.on_cpu = self.device.type == "cpu"
        graphs = self.device.type == "cuda" and getattr(network, "hf_quantizer", None) is None
        self.start_capture = partial(CudaCapture, self.device) if graphs else None
        """Captures decoding steps as CUDA graphs; None with bitsandbytes, which reads values in between."""
        self.reads_late = not self.on_cpu
        """Read the tokens of a step only when the next one is queued, so that the device never waits for the host."""
        self.workspaces = Workspaces()
        """Caches, captured steps and measured sizes, which outlive a run."""
        self._largest_batch = 0
        self.num_query_tokens = int(network.config.num_query_tokens)
        self.watch = Stopwatch()
        self.mean, self.std = tuple(mean), tuple(std)
        """Of each channel, for values from 0 to 1."""
        std_311 = torch.tensor(std, device=self.device).view(3, 1, 1)
        # (pixels / 255 - mean) / std in two passes over the pixels.
        self._scale, self._shift = 1 / (255 * std_311), torch.tensor(mean, device=self.device).view(3, 1, 1) / std_311
        self._ends = frozenset(end_ids(network.language_model.generation_config))

    @property
    def image_input(self) -> ImageInput:
        """A square of RGB pixels."""
        return SquareInput(self.image_size, choose_resizer)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return int(self.network.config.vision_config.image_size)

    @property
    def num_positions(self) -> int | None:
        """Largest number of tokens of the language model, image and output included; None for T5: no limit."""
        config = self.network.config.text_config
        return None if config.is_encoder_decoder else int(config.max_position_embeddings)

    def check(self, options: GenerateOptions, prompts: Sequence[str] = ()) -> None:
        """Raise UsageError for options with which no prompt at all would fit, and for a prompt that does not."""
        if self.num_positions is not None:
            num_free = self.num_positions - self.num_query_tokens - 1
            if options.max_new_tokens > num_free:
                raise UsageError(
                    f"--max-new-tokens {options.max_new_tokens}: this model takes at most {num_free} tokens after the "
                    "image. Ask for fewer."
                )
            for prompt in prompts:
                num_tokens = len(self.tokenise(prompt).ids)
                if num_tokens + options.max_new_tokens > num_free + 1:
                    shown = prompt if len(prompt) <= 60 else f"{prompt[:60]}..."
                    raise UsageError(
                        f'prompt "{shown}": too long for this model: {num_tokens} tokens, and --max-new-tokens '
                        f"{options.max_new_tokens}; both together may be {num_free + 1}. Shorten it, or ask for fewer."
                    )

    def current(self) -> AbstractContextManager[Any]:
        """Make its GPU the current one: new streams, events and graphs belong to the current GPU."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def wait(self) -> None:
        """Wait until the device has finished the work it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> TextSession:
        """Open a session that decodes at most `capacity` texts at once; None: as many as pay and fit."""
        return TextSession(self, options, capacity=capacity)

    def generate(
        self,
        features: torch.Tensor,
        prompts: Sequence[Prompt],
        options: GenerateOptions,
        *,
        capacity: int | None = None,
    ) -> list[Result]:
        """Answer all prompts about images, given the features of the images; return the results in order."""
        texts = self.start_texts(options, capacity=capacity)
        tickets = texts.add(features, prompts)
        results: dict[int, Result] = {}
        while len(results) < len(tickets):
            results.update(texts.advance())
        return [results[ticket] for ticket in tickets]

    @torch.inference_mode()
    def encode(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Run the vision encoder: uint8 [H, W, C] each -> features of each image for `image_embeddings`.

        Raises MemoryError if the images do not fit the device's memory.
        """
        try:
            with self.current(), memory_errors():
                with self.watch.measure("copy"):
                    pixels_BHWC = self._to_device(images)
                with self.watch.measure("vision"):
                    pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float().mul_(self._scale).sub_(self._shift)
                    return self.image_features(pixels_BCHW.to(self.dtype))[: len(images)]
        except MemoryError:
            self.workspaces.clear()  # the caches of other sessions
            raise

    def image_features(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Return what the language model sees of each image, [B, Q, D]."""
        network = self.network
        patches_BPD = network.vision_model(pixels_BCHW).last_hidden_state
        queries_BQD = network.query_tokens.expand(len(patches_BPD), -1, -1)
        # Not get_image_features, which passes a mask of ones: transformers reads it, and so waits for the device.
        queries_BQD = network.qformer(query_embeds=queries_BQD, encoder_hidden_states=patches_BPD).last_hidden_state
        projected_BQD: torch.Tensor = network.language_projection(queries_BQD.to(patches_BPD.dtype))
        return projected_BQD

    def _to_device(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Gather images in one buffer. On a GPU it is pinned, and a short batch is filled up with black images."""
        if self.device.type == "cpu":
            return torch.from_numpy(np.stack(images))
        # Kernels are planned for each number of images: few numbers occur, and a given batch size is one of them.
        self._largest_batch = max(self._largest_batch, len(images))
        num_images = min(1 << (len(images) - 1).bit_length(), self._largest_batch)
        # torch reuses pinned memory, but only when the GPU has read it.
        staged = torch.empty((num_images, *images[0].shape), dtype=torch.uint8, pin_memory=True)
        np.stack(images, out=staged[: len(images)].numpy())
        staged[len(images) :] = 0
        return staged.to(self.device, non_blocking=True)

    def tokenise(self, text: str) -> Tokens:
        """Tokenise a prompt."""
        return Tokens(ids=token_ids(self.tokenizer, text), qformer_ids=[])

    def image_embeddings(self, rows: Sequence[TextRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the language model sees of the images of rows, [I, Q, D], and the image of each row, [N]."""
        numbers: dict[int, int] = {}
        images: list[torch.Tensor] = []
        for row in rows:
            if id(row.image) not in numbers:
                numbers[id(row.image)] = len(images)
                images.append(row.image)
        image_of_N = to_device([numbers[id(row.image)] for row in rows], self.device)
        return torch.stack(images), image_of_N

    def given_ids(self, tokens: Tokens) -> list[int]:
        """Return the ids before the first new token, for repetition rules: image and prompt, or T5's start token."""
        language_model = self.network.language_model
        if language_model.config.is_encoder_decoder:
            return [language_model.generation_config.decoder_start_token_id]
        image_id = self.network.config.image_token_index
        if image_id is None:  # in old snapshots; padding does no harm
            image_id = self.tokenizer.pad_token_id or 0
        return [int(image_id)] * self.num_query_tokens + tokens.ids

    def read_text(self, ids: list[int]) -> Generated:
        """Turn new tokens, with the end token if there is one, into a text."""
        ended = bool(ids) and ids[-1] in self._ends
        ids = ids[:-1] if ended else ids
        text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return Generated(text=text, num_tokens=len(ids), finish_reason="stop" if ended else "length")


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise literally: the name of a special token inside a prompt is ordinary text."""
    return list(tokenizer(text, split_special_tokens=True, verbose=False).input_ids)
