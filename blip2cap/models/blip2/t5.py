"""Lean decoder for Flan-T5: uses the weights that transformers loaded, and a cache that is written in place.

The encoder is transformers' own: it runs once.

Shapes: N = rows, I = images, Q = query tokens, T = tokens of the prompt, P = Q + T, S = positions in the cache,
H = heads, K = size of a head, D = hidden size, V = vocabulary, M = rows of a step, B = beams of a row.
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

    def _allocate(
        self, like: torch.Tensor, num_rows: int, num_prefix: int, max_new_tokens: int, num_beams: int
    ) -> Cache:
        return Cache.allocate(
            like,
            num_layers=len(self.blocks),
            num_rows=num_rows,
            num_heads=self.config.num_heads,
            head_size=self.config.d_kv,
            length=1 + max_new_tokens * num_beams,
            cross_length=num_prefix,
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
        """Run the encoder on N texts, and fill the cache from `first_row` on.

        Each of `prompts` holds the ids, [n, T], of the next n texts. Returns the logits of the first new token, [N, V].
        """
        first = 0
        for ids_NT in prompts:
            rows = slice(first_row + first, first_row + first + len(ids_NT))
            self._encode(image_IQD[image_of_N[first : first + len(ids_NT)]], ids_NT, cache, rows)
            first += len(ids_NT)
        rows = slice(first_row, first_row + first)
        cache.own_L2RHSK[:, :, rows] = 0  # clears the rows' last texts
        cache.start(rows, 1)
        start_N1 = image_of_N.new_full((first, 1), self.start_id)
        zeros_N1 = torch.zeros_like(start_N1)
        bias_1H11 = self._bias(cache)[:, :1, :1].unsqueeze(0)
        return self._step(start_N1, zeros_N1, bias_1H11, cache, rows)

    def _encode(self, image_NQD: torch.Tensor, ids_NT: torch.Tensor, cache: Cache, rows: slice) -> None:
        """Run the encoder on image and prompt, and cache the keys and values for each layer of the decoder."""
        assert cache.cross_L2RHPK is not None
        assert cache.cross_lengths_R is not None
        text_NTD = self.model.shared(ids_NT)
        prefix_NPD = torch.cat([image_NQD.to(text_NTD.dtype), text_NTD], dim=1)
        # No mask: one of ones would be read by transformers, which waits for the device.
        encoded_NPD = self.model.encoder(inputs_embeds=prefix_NPD).last_hidden_state
        length = prefix_NPD.shape[1]
        shape = (len(ids_NT), length, 2, self.config.num_heads, self.config.d_kv)
        for index, block in enumerate(self.blocks):
            pair = project(block.layer[1].EncDecAttention, _CROSS, "kv", encoded_NPD)
            cache.cross_L2RHPK[index, :, rows, :, :length] = pair.view(shape).permute(2, 0, 3, 1, 4)
            cache.cross_L2RHPK[index, :, rows, :, length:] = 0
        cache.cross_lengths_R[rows] = length

    def step(self, ids_N: torch.Tensor, positions_M: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
        """Run one token of each beam of the first M rows; no beam sees an index from `length` on.

        Returns the logits of the next token, [N, V], with N = M x B.
        """
        num_rows = len(positions_M)
        indices_MB = cache.next_indices(positions_M)
        bias_MH1S = self._bias(cache)[:, positions_M, :length].transpose(0, 1).unsqueeze(2)
        bias_MHBS = bias_MH1S + cache.mask(num_rows, length)
        return self._step(ids_N.view(num_rows, -1), indices_MB, bias_MHBS, cache, slice(0, num_rows))

    def _step(
        self, ids_MB: torch.Tensor, indices_MB: torch.Tensor, bias_MHBS: torch.Tensor, cache: Cache, rows: slice
    ) -> torch.Tensor:
        assert cache.cross_L2RHPK is not None
        assert cache.cross_lengths_R is not None
        length = bias_MHBS.shape[3]
        own, cross = cache.own_L2RHSK[:, :, rows, :, :length], cache.cross_L2RHPK[:, :, rows]
        # A free row has length 0: attention without any key would leave NaN in the cache.
        lengths_M1 = cache.cross_lengths_R[rows].clamp(min=1).unsqueeze(1)
        absent_MP = torch.arange(cache.cross_length, device=ids_MB.device) >= lengths_M1
        mask_M11P = torch.zeros_like(absent_MP, dtype=own.dtype).masked_fill_(absent_MP, float("-inf"))[:, None, None]
        rows_M1 = torch.arange(len(ids_MB), device=ids_MB.device).unsqueeze(1)
        heads = (*ids_MB.shape, -1, self.config.num_heads, self.config.d_kv)

        hidden_MBD = self.model.shared(ids_MB)
        for index, block in enumerate(self.blocks):
            self_attention, cross_attention, feed_forward = block.layer
            normed = self_attention.layer_norm(hidden_MBD)
            qkv = project(self_attention.SelfAttention, _OWN, "qkv", normed)
            query, key, value = qkv.view(heads).permute(2, 0, 3, 1, 4)
            keys, values = own[index]
            keys[rows_M1, :, indices_MB] = key.transpose(1, 2)
            values[rows_M1, :, indices_MB] = value.transpose(1, 2)
            mixed = attend(query, keys, values, bias_MHBS)
            hidden_MBD = hidden_MBD + self_attention.SelfAttention.o(mixed.transpose(1, 2).flatten(2))
            normed = cross_attention.layer_norm(hidden_MBD)
            query = cross_attention.EncDecAttention.q(normed).view(heads).squeeze(2).transpose(1, 2)
            mixed = attend(query, cross[index, 0], cross[index, 1], mask_M11P)
            hidden_MBD = hidden_MBD + cross_attention.EncDecAttention.o(mixed.transpose(1, 2).flatten(2))
            hidden_MBD = feed_forward(hidden_MBD)
        hidden_ND = self.model.decoder.final_layer_norm(hidden_MBD).flatten(0, 1)
        if self.config.scale_decoder_outputs:
            hidden_ND = hidden_ND * self.model.model_dim**-0.5
        logits_NV: torch.Tensor = self.model.lm_head(hidden_ND)
        return logits_NV.float()

    def _bias(self, cache: Cache) -> torch.Tensor:
        """Return the position bias of the scores of a query at each position and a key at each index, [H, T, S]."""
        if cache.bias_HTS is None:
            first = self.blocks[0].layer[0].SelfAttention
            # The start token has index 0; with B beams, B indices follow for each position.
            num_positions = (cache.length - 2 + cache.num_beams) // cache.num_beams + 1
            bias_HTT = first.compute_bias(num_positions, num_positions)[0].to(cache.own_L2RHSK.dtype)
            indices_S = torch.arange(cache.length, device=bias_HTT.device)
            cache.bias_HTS = bias_HTT[:, :, (indices_S - 1 + cache.num_beams) // cache.num_beams]
        return cache.bias_HTS
