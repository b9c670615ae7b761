"""A loaded BLIP-2 or InstructBLIP: pixels in, texts out.

The image side runs once per image, the text side once per prompt.

Shapes: B = images, H, W = pixels, C = channels, P = patches, Q = query tokens, D = hidden size, N = text rows,
I = images of the rows, T = tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from blip2cap.decode.image import Pixels
from blip2cap.errors import UsageError
from blip2cap.models.base import Result
from blip2cap.models.blip2.decoders import make_decoder, why_none
from blip2cap.models.blip2.memory import memory_errors
from blip2cap.models.blip2.sampling import end_ids
from blip2cap.models.blip2.stream import TextRow, Tokens
from blip2cap.models.blip2.text_session import TextSession
from blip2cap.models.checkpoint import Checkpoint
from blip2cap.options import GenerateOptions
from blip2cap.records import Generated, Prompt
from blip2cap.stopwatch import Stopwatch


class Blip2:
    """A network with its tokenizer, on one device."""

    checkpoint: Checkpoint

    def __init__(
        self,
        network: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        family: str,
        mean: Sequence[float],
        std: Sequence[float],
        qformer_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.family = family
        self.qformer_tokenizer = qformer_tokenizer
        self.decoder = make_decoder(network)
        self.device: torch.device = network.device
        self.dtype: torch.dtype = network.vision_model.dtype  # in float16 the Q-Former stays in float32
        self.on_cpu = self.device.type == "cpu"
        self.graphs = self.device.type == "cuda" and getattr(network, "hf_quantizer", None) is None
        """Whether decoding steps are captured as CUDA graphs; bitsandbytes looks at its numbers on the way."""
        self.check_every = 1 if self.on_cpu else 2
        """Steps between looks at which texts have ended: a look waits for the device, which on a CPU costs nothing."""
        self.num_query_tokens = int(network.config.num_query_tokens)
        self.watch = Stopwatch()
        self.mean, self.std = tuple(mean), tuple(std)
        """Of each channel, of 0..1."""
        std_311 = torch.tensor(std, device=self.device).view(3, 1, 1)
        # (pixels / 255 - mean) / std in two passes over the pixels.
        self._scale, self._shift = 1 / (255 * std_311), torch.tensor(mean, device=self.device).view(3, 1, 1) / std_311
        self._ends = frozenset(end_ids(network.language_model.generation_config))
        self._staging = torch.empty(0, dtype=torch.uint8)
        self._staged: torch.cuda.Event | None = None

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return int(self.network.config.vision_config.image_size)

    @property
    def num_positions(self) -> int | None:
        """How many tokens the language model can take, the image's among them; None for T5, which has no end."""
        config = self.network.config.text_config
        return None if config.is_encoder_decoder else int(config.max_position_embeddings)

    def check(self, options: GenerateOptions) -> None:
        """Raise UsageError for options with which no prompt at all would fit."""
        if self.num_positions is not None:
            room = self.num_positions - self.num_query_tokens - 1
            if options.max_new_tokens > room:
                raise UsageError(
                    f"--max-new-tokens {options.max_new_tokens}: this model has room for {room} after the image. "
                    "Ask for fewer."
                )

    def current(self) -> AbstractContextManager[Any]:
        """Make its GPU the current one: streams, events and graphs belong to that, whatever tensors they work on."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def why_library(self) -> str:
        """Say why texts go through transformers' own `generate`; "" if they do not."""
        return why_none(self.network)

    def wait(self) -> None:
        """Wait until the device has done what it was asked to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> TextSession:
        """Begin the text side of a run; decodes at most `capacity` texts at a time, None: as many as pay and fit."""
        return TextSession(self, options, capacity=capacity)

    def generate(
        self,
        features: torch.Tensor,
        prompts: Sequence[Prompt],
        options: GenerateOptions,
        *,
        capacity: int | None = None,
    ) -> list[Result]:
        """Answer all prompts about images whose features these are, in their order; best text first."""
        texts = self.start_texts(options, capacity=capacity)
        tickets = texts.add(features, prompts)
        results: dict[int, Result] = {}
        while len(results) < len(tickets):
            results.update(texts.advance())
        return [results[ticket] for ticket in tickets]

    @torch.inference_mode()
    def encode(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Run the image side once: uint8 [H, W, C] each -> features for the text side.

        BLIP-2: what the language model sees, [B, Q, D]. InstructBLIP: the patches, [B, P, D], since its Q-Former
        depends on the instruction. Raises MemoryError if the device has no room.
        """
        with self.current(), memory_errors():
            with self.watch.measure("copy"):
                pixels_BHWC = self._to_device(images)
            with self.watch.measure("vision"):
                pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float().mul_(self._scale).sub_(self._shift).to(self.dtype)
                if self.family == "instructblip":
                    patches: torch.Tensor = self.network.vision_model(pixels_BCHW).last_hidden_state
                    return patches
                queries: torch.Tensor = self.network.get_image_features(pixels_BCHW).pooler_output
                return queries

    def _to_device(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Gather images in one buffer, which is kept, and pinned where a GPU fetches it."""
        if self.device.type == "cpu":
            return torch.from_numpy(np.stack(images))
        if self._staged is not None:
            self._staged.synchronize()  # the GPU may still be fetching the last batch
        if len(self._staging) < len(images):
            self._staging = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=True)
        staged = self._staging[: len(images)]
        np.stack(images, out=staged.numpy())
        pixels_BHWC = staged.to(self.device, non_blocking=True)
        self._staged = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._staged.record()
        return pixels_BHWC

    def image_embeddings(self, rows: Sequence[TextRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the language model sees of the images of rows, [I, Q, D], and which of them each row has."""
        if self.family == "instructblip":
            return self._instructed(rows), torch.arange(len(rows), device=self.device)
        numbers: dict[int, int] = {}
        images: list[torch.Tensor] = []
        for row in rows:
            if id(row.image) not in numbers:
                numbers[id(row.image)] = len(images)
                images.append(row.image)
        image_of_N = torch.tensor([numbers[id(row.image)] for row in rows], device=self.device)
        return torch.stack(images), image_of_N

    def _instructed(self, rows: Sequence[TextRow]) -> torch.Tensor:
        """Run InstructBLIP's Q-Former, which looks at the image with the instruction in mind."""
        by_length = itertools.groupby(rows, key=lambda row: len(row.tokens.qformer_ids))
        return torch.cat([self._query(list(group)) for _, group in by_length])

    def _query(self, rows: Sequence[TextRow]) -> torch.Tensor:
        """The same for instructions of equal length."""
        patches_NPD = torch.stack([row.image for row in rows])
        queries_NQD = self.network.query_tokens.expand(len(rows), -1, -1)
        ids_NT = torch.tensor([row.tokens.qformer_ids for row in rows], device=self.device)
        mask_NT = torch.ones((len(rows), self.num_query_tokens + ids_NT.shape[1]), dtype=torch.long, device=self.device)
        with self.watch.measure("qformer"):
            hidden_NTD = self.network.qformer(
                input_ids=ids_NT,
                attention_mask=mask_NT,
                query_embeds=queries_NQD,
                encoder_hidden_states=patches_NPD,
                encoder_attention_mask=mask_NT.new_ones(patches_NPD.shape[:2]),
            ).last_hidden_state
            projection = self.network.language_projection
            projected: torch.Tensor = projection(hidden_NTD[:, : self.num_query_tokens].to(projection.weight.dtype))
            return projected

    def history(self, tokens: Tokens) -> list[int]:
        """Return the ids that rules count before the first new token: image and prompt, or what starts T5's texts."""
        language_model = self.network.language_model
        if language_model.config.is_encoder_decoder:
            return [language_model.generation_config.decoder_start_token_id]
        image_id = self.network.config.image_token_index
        if image_id is None:  # in old snapshots; padding does no harm
            image_id = self.tokenizer.pad_token_id or 0
        return [int(image_id)] * self.num_query_tokens + tokens.ids

    def read_text(self, ids: list[int]) -> Generated:
        """Turn new tokens, with the one that ends them, into a text."""
        ended = bool(ids) and ids[-1] in self._ends
        ids = ids[:-1] if ended else ids
        text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return Generated(text=text, num_tokens=len(ids), finish_reason="stop" if ended else "length")
