"""Lean decoder for Flan-T5: uses the weights that transformers loaded, and a cache that is written in place.

The encoder is transformers' own: it runs once.

Shapes: N = rows, I = images, Q = query tokens, T = tokens of the prompt, P = Q + T, S = positions in the cache,
H = heads, K = size of a head, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from blip2cap.models.blip2.attention import attend
from blip2cap.models.blip2.cache import Cache, CacheAllocator
from blip2cap.models.blip2.linear_layers import fuse, project

_OWN, _CROSS = ("q", "k", "v"), ("k", "v")


class T5Decoder(CacheAllocator):
    """Prefills rows of a cache, and runs steps of one token for the first rows."""

    def __init__(self, language_model: Any) -> None:
        super().__init__(language_model.shared.weight)
        self.model = language_model
        self.config = language_model.config
        self.blocks = language_model.decoder.block
        self.start_id = language_model.generation_config.decoder_start_token_id

    @staticmethod
    def fuse(language_model: Any) -> None:
        """Fuse query, key and value of the decoder's self-attention, and key and value of its cross-attention."""
        for block in language_model.decoder.block:
            fuse(block.layer[0].SelfAttention, _OWN, "qkv")
            fuse(block.layer[1].EncDecAttention, _CROSS, "kv")

    def num_given(self, num_prefix: int) -> int:
        """Return the number of positions that a row uses before its first new token: one, for the start token."""
        return 1

    def _allocate(self, like: torch.Tensor, num_rows: int, num_prefix: int, max_new_tokens: int) -> Cache:
        return Cache.allocate(
            like,
            num_layers=len(self.blocks),
            num_rows=num_rows,
            num_heads=self.config.num_heads,
            head_size=self.config.d_kv,
            length=1 + max_new_tokens,
            cross_length=num_prefix,
        )

    def prefill(
        self,
        image_IQD: torch.Tensor,
        image_of_N: torch.Tensor,
        prompts: Sequence[torch.Tensor],
        cache: Cache,
        first_row: int,
        num_beams: int = 1,
    ) -> torch.Tensor:
        """Run the encoder on N texts, and fill the cache, each `num_beams` times, from `first_row` on.

        Each of `prompts` holds the ids, [n, T], of the next n texts. Returns the logits of the first new token, [N, V].
        """
        first = 0
        for ids_NT in prompts:
            rows = slice(first_row + first * num_beams, first_row + (first + len(ids_NT)) * num_beams)
            self._encode(image_IQD[image_of_N[first : first + len(ids_NT)]], ids_NT, cache, rows, num_beams)
            first += len(ids_NT)
        cache.own_L2RHSK[:, :, first_row : first_row + first * num_beams] = 0  # clears the rows' last texts
        start_N = image_of_N.new_full((first * num_beams,), self.start_id)
        rows = slice(first_row, first_row + first * num_beams)
        logits_NV = self._step(start_N, torch.zeros_like(start_N), cache, rows, length=1)
        return logits_NV[::num_beams]

    def _encode(self, image_NQD: torch.Tensor, ids_NT: torch.Tensor, cache: Cache, rows: slice, num_beams: int) -> None:
        """Run the encoder on image and prompt, and cache the keys and values for each layer of the decoder."""
        assert cache.cross_L2RHPK is not None
        assert cache.cross_lengths_R is not None
        text_NTD = self.model.shared(ids_NT)
        prefix_NPD = torch.cat([image_NQD.to(text_NTD.dtype), text_NTD], dim=1)
        mask_NP = torch.ones(prefix_NPD.shape[:2], dtype=torch.long, device=prefix_NPD.device)
        encoded_NPD = self.model.encoder(inputs_embeds=prefix_NPD, attention_mask=mask_NP).last_hidden_state
        length = prefix_NPD.shape[1]
        shape = (len(ids_NT), length, 2, self.config.num_heads, self.config.d_kv)
        for index, block in enumerate(self.blocks):
            pair = project(block.layer[1].EncDecAttention, _CROSS, "kv", encoded_NPD)
            pair_2NHPK = pair.view(shape).permute(2, 0, 3, 1, 4)
            if num_beams > 1:
                pair_2NHPK = pair_2NHPK.repeat_interleave(num_beams, dim=1)
            cache.cross_L2RHPK[index, :, rows, :, :length] = pair_2NHPK
            cache.cross_L2RHPK[index, :, rows, :, length:] = 0
        cache.cross_lengths_R[rows] = length

    def step(self, ids_N: torch.Tensor, positions_N: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
        """Run one token of each of the first N rows at its position, all of them below `length`.

        Returns the logits of the next token, [N, V].
        """
        return self._step(ids_N, positions_N, cache, slice(0, len(ids_N)), length)

    def _step(
        self, ids_N: torch.Tensor, positions_N: torch.Tensor, cache: Cache, rows: slice, length: int
    ) -> torch.Tensor:
        assert cache.cross_L2RHPK is not None
        assert cache.cross_lengths_R is not None
        own, cross = cache.own_L2RHSK[:, :, rows, :, :length], cache.cross_L2RHPK[:, :, rows]
        unseen_NS = torch.arange(length, device=ids_N.device) > positions_N.unsqueeze(1)
        bias_NH1S = self._bias(cache)[:, positions_N, :length].transpose(0, 1).unsqueeze(2)
        bias_NH1S = bias_NH1S.masked_fill(unseen_NS[:, None, None], float("-inf"))
        # A free row has length 0: attention without any key would leave NaN in the cache.
        lengths_N1 = cache.cross_lengths_R[rows].clamp(min=1).unsqueeze(1)
        absent_NP = torch.arange(cache.cross_length, device=ids_N.device) >= lengths_N1
        mask_N11P = torch.zeros_like(absent_NP, dtype=own.dtype).masked_fill_(absent_NP, float("-inf"))[:, None, None]
        rows_N = torch.arange(len(ids_N), device=ids_N.device)
        heads = (len(ids_N), 1, -1, self.config.num_heads, self.config.d_kv)

        hidden_N1D = self.model.shared(ids_N).unsqueeze(1)
        for index, block in enumerate(self.blocks):
            self_attention, cross_attention, feed_forward = block.layer
            normed = self_attention.layer_norm(hidden_N1D)
            qkv = project(self_attention.SelfAttention, _OWN, "qkv", normed)
            query, key, value = qkv.view(heads).permute(2, 0, 3, 1, 4)
            keys, values = own[index]
            keys[rows_N, :, positions_N], values[rows_N, :, positions_N] = key.squeeze(2), value.squeeze(2)
            mixed = attend(query, keys, values, bias_NH1S)
            hidden_N1D = hidden_N1D + self_attention.SelfAttention.o(mixed.transpose(1, 2).flatten(2))
            normed = cross_attention.layer_norm(hidden_N1D)
            query = cross_attention.EncDecAttention.q(normed).view(heads).squeeze(2).transpose(1, 2)
            mixed = attend(query, cross[index, 0], cross[index, 1], mask_N11P)
            hidden_N1D = hidden_N1D + cross_attention.EncDecAttention.o(mixed.transpose(1, 2).flatten(2))
            hidden_N1D = feed_forward(hidden_N1D)
        hidden_ND = self.model.decoder.final_layer_norm(hidden_N1D).squeeze(1)
        if self.config.scale_decoder_outputs:
            hidden_ND = hidden_ND * self.model.model_dim**-0.5
        logits_NV: torch.Tensor = self.model.lm_head(hidden_ND)
        return logits_NV.float()

    def _bias(self, cache: Cache) -> torch.Tensor:
        """Return the position bias of the scores of each query and key, [H, S, S]."""
        if cache.bias_HSS is None:
            first = self.blocks[0].layer[0].SelfAttention
            cache.bias_HSS = first.compute_bias(cache.length, cache.length)[0].to(cache.own_L2RHSK.dtype)
        return cache.bias_HSS
