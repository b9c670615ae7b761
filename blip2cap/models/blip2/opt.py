"""Lean decoder for OPT: uses the weights that transformers loaded, and a cache that is written in place.

Shapes: N = rows, I = images, Q = query tokens, T = tokens of the prompt, S = positions in the cache, H = heads,
K = size of a head, D = hidden size, V = vocabulary, M = rows of a step, B = beams of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from blip2cap.models.blip2.attention import attend
from blip2cap.models.blip2.cache import Cache, CacheAllocator
from blip2cap.models.blip2.linear_layers import fuse, project

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_Attention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class OptDecoder(CacheAllocator):
    """Prefills rows of a cache, and runs steps of one token for the first rows."""

    def __init__(self, language_model: Any) -> None:
        self.decoder = language_model.model.decoder
        super().__init__(self.decoder.embed_positions.weight)
        self.lm_head = language_model.lm_head
        self.config = language_model.config
        self.head_size = self.config.hidden_size // self.config.num_attention_heads

    @staticmethod
    def fuse(language_model: Any) -> None:
        """Fuse query, key and value of each layer into one matrix."""
        for layer in language_model.model.decoder.layers:
            fuse(layer.self_attn, _PROJECTIONS, "qkv")

    def num_given(self, num_prefix: int) -> int:
        """Return the number of positions that a row uses before its first new token."""
        return num_prefix

    def _allocate(
        self, like: torch.Tensor, num_rows: int, num_prefix: int, max_new_tokens: int, num_beams: int
    ) -> Cache:
        return Cache.allocate(
            like,
            num_layers=len(self.decoder.layers),
            num_rows=num_rows,
            num_heads=self.config.num_attention_heads,
            head_size=self.head_size,
            length=num_prefix + max_new_tokens * num_beams,
            num_beams=num_beams,
        )

    def prefill(
        self,
        image_IQD: torch.Tensor,
        image_of_N: torch.Tensor,
        prompts: Sequence[torch.Tensor],
        cache: Cache,
        first_row: int,
    ) -> torch.Tensor:
        """Run image and prompt of N texts, and fill the cache from `first_row` on.

        Each of `prompts` holds the ids, [n, T], of the next n texts. Returns the logits of the next token, [N, V]. An
        image that is shared by several prompts runs once.
        """
        image_IQD = image_IQD.to(self.decoder.embed_tokens.weight.dtype)
        one_prompt_each = len(image_IQD) == len(image_of_N)
        image_layers = [] if one_prompt_each else self._run_images(image_IQD)
        logits, first = [], 0
        for ids_NT in prompts:
            images_N = image_of_N[first : first + len(ids_NT)]
            rows = slice(first_row + first, first_row + first + len(ids_NT))
            cache.start(rows, image_IQD.shape[1] + ids_NT.shape[1])
            text_NTD = self.decoder.embed_tokens(ids_NT)
            if one_prompt_each:
                prefix_NTD = torch.cat([image_IQD[images_N], text_NTD], dim=1)
                hidden_NTD = self._run_together(prefix_NTD, cache, rows)
            else:
                hidden_NTD = self._run_prompts(image_layers, images_N, text_NTD, cache, rows)
            logits.append(self._logits(hidden_NTD[:, -1]))
            first += len(ids_NT)
        return torch.cat(logits)

    def _run_together(self, prefix_NTD: torch.Tensor, cache: Cache, rows: slice) -> torch.Tensor:
        """Run image and prompt together."""
        length = prefix_NTD.shape[1]

        def attention(index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            cache.write(index, rows, key, value)
            return attend(query, key, value, None)

        return self._run(prefix_NTD, self._positions(0, length, prefix_NTD), attention)

    def _run_images(self, image_IQD: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Run images alone; return the keys and values of each layer, [I, H, Q, K]."""
        layers: list[tuple[torch.Tensor, torch.Tensor]] = []

        def attention(index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            layers.append((key, value))
            return attend(query, key, value, None)

        self._run(image_IQD, self._positions(0, image_IQD.shape[1], image_IQD), attention)
        return layers

    def _run_prompts(
        self,
        image_layers: list[tuple[torch.Tensor, torch.Tensor]],
        image_of_N: torch.Tensor,
        text_NTD: torch.Tensor,
        cache: Cache,
        rows: slice,
    ) -> torch.Tensor:
        """Run prompts after their images, given the keys and values of the images."""
        num_queries, num_tokens = image_layers[0][0].shape[2], text_NTD.shape[1]
        length = num_queries + num_tokens
        unseen_TS = torch.ones(num_tokens, length, dtype=torch.bool, device=text_NTD.device).triu(num_queries + 1)
        mask_TS = torch.zeros_like(unseen_TS, dtype=text_NTD.dtype).masked_fill_(unseen_TS, float("-inf"))

        def attention(index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            image_key, image_value = image_layers[index]
            key = torch.cat([image_key[image_of_N], key], dim=2)
            value = torch.cat([image_value[image_of_N], value], dim=2)
            cache.write(index, rows, key, value)
            return attend(query, key, value, mask_TS)

        return self._run(text_NTD, self._positions(num_queries, length, text_NTD), attention)

    def step(self, ids_N: torch.Tensor, positions_M: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
        """Run one token of each beam of the first M rows; no beam sees an index from `length` on.

        Returns the logits of the next token, [N, V], with N = M x B.
        """
        num_rows = len(positions_M)
        indices_MB = cache.next_indices(positions_M)
        mask_M1BS = cache.mask(num_rows, length)
        own = cache.own_L2RHSK[:, :, :num_rows, :, :length]
        rows_M1 = torch.arange(num_rows, device=ids_N.device).unsqueeze(1)

        def attention(index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            keys, values = own[index]
            keys[rows_M1, :, indices_MB] = key.transpose(1, 2)
            values[rows_M1, :, indices_MB] = value.transpose(1, 2)
            return attend(query, keys, values, mask_M1BS)

        embedded_MBD = self.decoder.embed_tokens(ids_N.view(num_rows, -1))
        hidden_MBD = self._run(embedded_MBD, positions_M.unsqueeze(1), attention)
        return self._logits(hidden_MBD.flatten(0, 1))

    def _positions(self, begin: int, end: int, like: torch.Tensor) -> torch.Tensor:
        return torch.arange(begin, end, device=like.device).unsqueeze(0)

    def _logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm_head(hidden_ND)
        return logits.float()

    def _run(self, hidden_NTD: torch.Tensor, positions: torch.Tensor, attention: _Attention) -> torch.Tensor:
        decoder, before = self.decoder, self.config.do_layer_norm_before
        if decoder.project_in is not None:
            hidden_NTD = decoder.project_in(hidden_NTD)
        table = decoder.embed_positions
        hidden_NTD = hidden_NTD + functional.embedding(positions + table.offset, table.weight)
        num_rows, length, size = hidden_NTD.shape
        shape = (num_rows, length, 3, self.config.num_attention_heads, self.head_size)
        for index, layer in enumerate(decoder.layers):
            weights = layer.self_attn
            normed = layer.self_attn_layer_norm(hidden_NTD) if before else hidden_NTD
            qkv = project(weights, _PROJECTIONS, "qkv", normed)
            query, key, value = qkv.view(shape).permute(2, 0, 3, 1, 4)
            mixed_NHTK = attention(index, query * weights.scaling, key, value)
            mixed_NTD = mixed_NHTK.transpose(1, 2).reshape(num_rows, length, size)
            hidden_NTD = hidden_NTD + weights.out_proj(mixed_NTD)
            if not before:
                hidden_NTD = layer.self_attn_layer_norm(hidden_NTD)
            normed = layer.final_layer_norm(hidden_NTD) if before else hidden_NTD
            hidden_NTD = hidden_NTD + layer.fc2(layer.activation_fn(layer.fc1(normed)))
            if not before:
                hidden_NTD = layer.final_layer_norm(hidden_NTD)
        if decoder.final_layer_norm is not None:
            hidden_NTD = decoder.final_layer_norm(hidden_NTD)
        return hidden_NTD if decoder.project_out is None else decoder.project_out(hidden_NTD)
