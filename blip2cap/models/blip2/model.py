"""A loaded BLIP-2: pixels in, texts out.

The vision encoder runs once per image, the language model once per prompt.

Shapes: B = images, H, W = pixels, C = channels, Q = query tokens, D = hidden size, I = images of text rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    InstructBlipForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from blip2cap.decode.image import Pixels
from blip2cap.decode.inputs import ImageInput, SquareInput
from blip2cap.errors import UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import MATCHING_MODELS, Checkpoint, OnText, Result, TextModel
from blip2cap.models.blip2.cuda_graphs import CudaCapture
from blip2cap.models.blip2.decoders import fallback_reason, make_decoder
from blip2cap.models.blip2.embed_session import EmbedSession, check_what, normalise
from blip2cap.models.blip2.pixels import PixelInput
from blip2cap.models.blip2.resize import choose_resizer
from blip2cap.models.blip2.sampling import end_ids
from blip2cap.models.blip2.stream import TextRow, Tokens
from blip2cap.models.blip2.text_session import TextSession, Workspaces
from blip2cap.models.blip2.transfer import to_device
from blip2cap.models.device import memory_errors
from blip2cap.records import Generated, Prompt
from blip2cap.stopwatch import Stopwatch

NETWORK_CLASSES = {
    "opt": Blip2ForConditionalGeneration,
    "t5": Blip2ForConditionalGeneration,
    "instructblip": InstructBlipForConditionalGeneration,
    "matching": Blip2ForImageTextRetrieval,
}
"""The classes of transformers, by family."""


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
        self.num_query_tokens = int(network.config.num_query_tokens)
        self.watch = Stopwatch()
        self.mean, self.std = tuple(mean), tuple(std)
        """Of each channel, for values from 0 to 1."""
        self._pixels = PixelInput(self.device, self.dtype, mean=mean, std=std)
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

    def start_chat(self, options: GenerateOptions, *, on_text: OnText) -> TextSession:
        """Open a session for one prompt at a time. With transformers' `generate`, a text is known only at its end."""
        return TextSession(self, options, capacity=1, on_text=on_text)

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

    def encode(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Run the vision encoder: uint8 [H, W, C] each -> features of each image for `image_embeddings`.

        Raises MemoryError if the images do not fit the device's memory.
        """
        return self._encode(images, self.image_features)

    @torch.inference_mode()
    def _encode(self, images: Sequence[Pixels], features_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return the features of images, given their pixels [B, C, H, W]."""
        try:
            with self.current(), memory_errors():
                with self.watch.measure("copy"):
                    pixels_BHWC = self._pixels.copy(images)
                with self.watch.measure("vision"):
                    return features_of(self._pixels.normalise(pixels_BHWC))[: len(images)]
        except MemoryError:
            self.workspaces.clear()  # the caches of other sessions
            raise

    def image_features(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Return what the language model sees of each image, [B, Q, D]."""
        projected_BQD: torch.Tensor = self.network.language_projection(self.query_features(pixels_BCHW).to(self.dtype))
        return projected_BQD

    def query_features(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the last hidden state of the Q-Former for each image, [B, Q, D]."""
        patches_BPD = self.network.vision_model(pixels_BCHW).last_hidden_state
        queries_BQD = self.network.query_tokens.expand(len(patches_BPD), -1, -1)
        # Not get_image_features, which passes a mask of ones: transformers reads it, and so waits for the device.
        hidden_BQD: torch.Tensor = self.network.qformer(
            query_embeds=queries_BQD, encoder_hidden_states=patches_BPD
        ).last_hidden_state
        return hidden_BQD

    def embedding_shape(self, what: str) -> tuple[int, ...]:
        """Return the shape of the vectors of an image. Raises UsageError for others than `qformer`."""
        check_what(what, ("qformer",), hint=f"For pooled or queries, use {MATCHING_MODELS}.")
        return self.num_query_tokens, int(self.network.config.qformer_config.hidden_size)

    def start_embed(self, what: str, *, normalised: bool, capacity: int | None) -> EmbedSession:
        """Open a session whose results are the last hidden state of the Q-Former, float32 [Q, D].

        `normalised`: each of the Q vectors has length 1. Raises UsageError for other vectors than `qformer`.
        """
        self.embedding_shape(what)

        def features_of(pixels_BCHW: torch.Tensor) -> torch.Tensor:
            hidden_BQD = self.query_features(pixels_BCHW)
            return normalise(hidden_BQD) if normalised else hidden_BQD.float()

        def embed(images: Sequence[Pixels]) -> torch.Tensor:
            return self._encode(images, features_of)

        return EmbedSession(embed, capacity=capacity, reads_late=self.reads_late)

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
