"""A loaded BLIP-2 or InstructBLIP: pixels in, texts out.

The image side runs once per image, the text side once per prompt; rows with prompts of different lengths never share a
call, so nothing is ever padded and a text cannot depend on its neighbours.

Shapes: B = images, H, W = pixels, C = channels, P = patches, Q = query tokens, D = hidden size, N = text rows,
T = tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from blip2cap.decode import Pixels
from blip2cap.errors import ImageError, UsageError
from blip2cap.model.sampling import generation_config, row_seed, sampling_processors
from blip2cap.options import GenerateOptions
from blip2cap.records import Generated, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tokens:
    """A prompt as token ids."""

    index: int
    prompt: Prompt
    ids: list[int]
    qformer_ids: list[int]
    """InstructBLIP's Q-Former reads the instruction too; empty for BLIP-2."""

    @property
    def lengths(self) -> tuple[int, int]:
        return len(self.ids), len(self.qformer_ids)


class Blip2:
    """A network with its tokenizer, on one device."""

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
        self.device: torch.device = network.device
        self.dtype: torch.dtype = network.vision_model.dtype  # in float16 the Q-Former stays in float32
        self.num_query_tokens = int(network.config.num_query_tokens)
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)

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

    @torch.inference_mode()
    def encode(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Run the image side once: uint8 [H, W, C] each -> features for `generate`.

        BLIP-2: what the language model sees, [B, Q, D]. InstructBLIP: the patches, [B, P, D], since its Q-Former
        depends on the instruction. Raises MemoryError if the device has no room.
        """
        with _memory_errors():
            return self._encode(images)

    def _encode(self, images: Sequence[Pixels]) -> torch.Tensor:
        pixels_BHWC = torch.from_numpy(np.stack(images)).to(self.device, non_blocking=True)
        pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float()
        pixels_BCHW = ((pixels_BCHW / 255 - self._mean) / self._std).to(self.dtype)
        if self.family == "instructblip":
            patches: torch.Tensor = self.network.vision_model(pixels_BCHW).last_hidden_state
            return patches
        queries: torch.Tensor = self.network.get_image_features(pixels_BCHW).pooler_output
        return queries

    @torch.inference_mode()
    def generate(
        self, features: torch.Tensor, prompts: Sequence[Prompt], options: GenerateOptions, *, max_prompts: int
    ) -> list[list[Generated] | ImageError]:
        """Generate `options.num_captions` texts for each prompt, best first; in the order of `prompts`.

        At most `max_prompts` of them run at a time. A prompt that does not fit the language model comes back as an
        ImageError. Raises MemoryError if the device has no room; then nothing is kept.
        """
        results: list[list[Generated] | ImageError] = [[] for _ in prompts]
        fitting = []
        for tokens in self._tokenise(prompts):
            needed = self.num_query_tokens + len(tokens.ids) + options.max_new_tokens
            if self.num_positions is not None and needed > self.num_positions:
                detail = (
                    f"image, prompt and --max-new-tokens take {self.num_query_tokens} + {len(tokens.ids)} + "
                    f"{options.max_new_tokens} tokens, the language model has room for {self.num_positions}"
                )
                results[tokens.index] = ImageError("unsupported", detail)
            else:
                fitting.append(tokens)
        for bucket in _buckets(fitting, max_prompts):
            with _memory_errors():
                generated = self._generate_bucket(features, bucket, options)
            for tokens, texts in zip(bucket, generated, strict=True):
                results[tokens.index] = texts
        return results

    def _tokenise(self, prompts: Sequence[Prompt]) -> Iterator[_Tokens]:
        known: dict[str, tuple[list[int], list[int]]] = {}
        for index, prompt in enumerate(prompts):
            if prompt.text not in known:
                ids = self._ids(self.tokenizer, prompt.text)
                qformer_ids = self._ids(self.qformer_tokenizer, prompt.text) if self.qformer_tokenizer else []
                known[prompt.text] = ids, qformer_ids
            ids, qformer_ids = known[prompt.text]
            yield _Tokens(index=index, prompt=prompt, ids=ids, qformer_ids=qformer_ids)

    @staticmethod
    def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """Tokenise literally: a special token's name inside a prompt is text like any other."""
        return list(tokenizer(text, split_special_tokens=True, verbose=False).input_ids)

    def _generate_bucket(
        self, features: torch.Tensor, bucket: Sequence[_Tokens], options: GenerateOptions
    ) -> list[list[Generated]]:
        """Generate for rows whose prompts are equally long."""
        copies = options.num_captions if options.sampling else 1
        rows = [tokens for tokens in bucket for _ in range(copies)]
        ids_NT = torch.tensor([tokens.ids for tokens in rows], device=self.device)
        image_NQD = self._image_embeddings(features, rows)
        language_model = self.network.language_model
        text_NTD = self.network.get_input_embeddings()(ids_NT)
        embeds_NTD = torch.cat([image_NQD.to(text_NTD.dtype), text_NTD], dim=1)
        inputs = {
            "inputs_embeds": embeds_NTD,
            "attention_mask": torch.ones(embeds_NTD.shape[:2], dtype=torch.long, device=self.device),
        }
        num_given = 1  # T5 answers with its start token first
        if not language_model.config.is_encoder_decoder:
            # Decoders repeat what they were given; n-gram and repetition rules count it, the image ids too.
            image_ids = ids_NT.new_full((len(rows), self.num_query_tokens), self._image_id())
            inputs["input_ids"] = torch.cat([image_ids, ids_NT], dim=1)
            num_given = inputs["input_ids"].shape[1]
        seeds = [row_seed(options.seed, tokens.prompt.name, index % copies) for index, tokens in enumerate(rows)]
        processors = sampling_processors(options, torch.tensor(seeds, device=self.device))
        output_NT = language_model.generate(
            **inputs,
            generation_config=generation_config(language_model.generation_config, options),
            logits_processor=LogitsProcessorList(processors),
        )
        texts = [self._finish(ids) for ids in output_NT[:, num_given:].tolist()]
        return [texts[at : at + options.num_captions] for at in range(0, len(texts), options.num_captions)]

    def _image_embeddings(self, features: torch.Tensor, rows: Sequence[_Tokens]) -> torch.Tensor:
        """Return what the language model sees of each row's image, [N, Q, D]."""
        chosen = features[torch.tensor([tokens.prompt.image for tokens in rows], device=self.device)]
        if self.family != "instructblip":
            return chosen
        queries_NQD = self.network.query_tokens.expand(len(rows), -1, -1)
        qformer_ids_NT = torch.tensor([tokens.qformer_ids for tokens in rows], device=self.device)
        mask_NT = torch.ones(
            (len(rows), self.num_query_tokens + qformer_ids_NT.shape[1]), dtype=torch.long, device=self.device
        )
        hidden_NTD = self.network.qformer(
            input_ids=qformer_ids_NT,
            attention_mask=mask_NT,
            query_embeds=queries_NQD,
            encoder_hidden_states=chosen,
            encoder_attention_mask=mask_NT.new_ones(chosen.shape[:2]),
        ).last_hidden_state
        projection = self.network.language_projection
        projected: torch.Tensor = projection(hidden_NTD[:, : self.num_query_tokens].to(projection.weight.dtype))
        return projected

    def _image_id(self) -> int:
        """Return the id that stands for the image in the history; old snapshots have none, padding does no harm."""
        image_id = self.network.config.image_token_index
        return int(self.tokenizer.pad_token_id or 0) if image_id is None else int(image_id)

    def _finish(self, ids: list[int]) -> Generated:
        """Cut a row at the token that ends it, and read it."""
        ends = self.network.language_model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        length = next((index for index, token in enumerate(ids) if token in ends), len(ids))
        text = self.tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
        return Generated(text=text, num_tokens=length, finish_reason="stop" if length < len(ids) else "length")


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Say it as Python does when the device, or the machine, has no memory left."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise MemoryError(str(error)) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise MemoryError(str(error)) from error


def _buckets(rows: Sequence[_Tokens], size: int) -> Iterator[Sequence[_Tokens]]:
    """Group rows by the lengths of their prompts, at most `size` together, in the order of first appearance."""
    groups: dict[tuple[int, int], list[_Tokens]] = {}
    for tokens in rows:
        groups.setdefault(tokens.lengths, []).append(tokens)
    for group in groups.values():
        for at in range(0, len(group), size):
            yield group[at : at + size]
