"""The Q-Former of a matching model, run module by module.

It computes what transformers' class does, with two differences: the keys and values of an image, nearly half of the
work on a text, are computed once for all its texts; and no mask is read, so nothing waits for a GPU.

Shapes: B = images, P = patches, Q = query tokens, D = hidden size, N = rows, T = tokens of a text, padded, S = Q + T,
H = heads, K = size of a head.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch.nn import functional

KeysValues: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values, [B, H, P, K] each, of each layer that attends to the image."""


class QFormer:
    """The Q-Former, the embeddings and the query tokens of a network of `Blip2ForImageTextRetrieval`."""

    def __init__(self, network: Any) -> None:
        self.embeddings, self.query_tokens, self.qformer = network.embeddings, network.query_tokens, network.qformer
        self.layers = network.qformer.encoder.layer
        self.num_queries = int(network.config.num_query_tokens)
        self.dtype: torch.dtype = network.qformer.layernorm.weight.dtype  # float32 in a float16 model

    def keys_values(self, patches_BPD: torch.Tensor) -> KeysValues:
        """Return keys and values of images."""
        patches_BPD = patches_BPD.to(self.dtype)
        attentions = [layer.crossattention.attention for layer in self.layers if layer.has_cross_attention]
        return [
            (_heads(attention, attention.key(patches_BPD)), _heads(attention, attention.value(patches_BPD)))
            for attention in attentions
        ]

    def look(self, image: KeysValues) -> torch.Tensor:
        """Run the query tokens alone on images; return the last hidden state, [B, Q, D]."""
        return self._run(self._queries(len(image[0][0])), None, image, self.num_queries)

    def read(self, ids_NT: torch.Tensor, mask_NT: torch.Tensor) -> torch.Tensor:
        """Run texts alone; return the last hidden state, [N, T, D]. Masks are False for padding."""
        return self._run(self._embed(ids_NT), self._additive(mask_NT), [], 0)

    def compare(self, ids_NT: torch.Tensor, mask_NT: torch.Tensor, image: KeysValues) -> torch.Tensor:
        """Run query tokens and texts together; return the last hidden state of the queries, [N, Q, D].

        `image` has the keys and values of the image of each row.
        """
        queries_NQD, text_NTD = self._queries(len(ids_NT)), self._embed(ids_NT)
        mask_NS = functional.pad(mask_NT, (self.num_queries, 0), value=True)
        hidden_NSD = torch.cat([queries_NQD, text_NTD], dim=1)
        return self._run(hidden_NSD, self._additive(mask_NS), image, self.num_queries)[:, : self.num_queries]

    def _queries(self, num_rows: int) -> torch.Tensor:
        queries_1QD: torch.Tensor = self.query_tokens.to(self.dtype)
        return queries_1QD.expand(num_rows, -1, -1)

    def _embed(self, ids_NT: torch.Tensor) -> torch.Tensor:
        embedded_NTD: torch.Tensor = self.embeddings(input_ids=ids_NT)
        return embedded_NTD.to(self.dtype)

    def _additive(self, mask_NS: torch.Tensor) -> torch.Tensor:
        """Return a mask that is added to scores, [N, 1, 1, S]."""
        lowest = torch.finfo(self.dtype).min
        added_NS = torch.zeros(mask_NS.shape, dtype=self.dtype, device=mask_NS.device).masked_fill_(~mask_NS, lowest)
        return added_NS[:, None, None, :]

    def _run(
        self, hidden_NSD: torch.Tensor, mask: torch.Tensor | None, image: KeysValues, num_queries: int
    ) -> torch.Tensor:
        """Run all layers; the first `num_queries` positions attend to the image too, and have their own projections."""
        hidden_NSD = self.qformer.layernorm(hidden_NSD)
        images = iter(image)
        for layer in self.layers:
            hidden_NSD = layer.attention(hidden_states=hidden_NSD, attention_mask=mask)
            if num_queries == 0:
                hidden_NSD = layer.feed_forward_chunk(hidden_NSD)
                continue
            queries_NQD, text_NTD = hidden_NSD[:, :num_queries], hidden_NSD[:, num_queries:]
            if layer.has_cross_attention:
                queries_NQD = _attend(layer.crossattention, queries_NQD, *next(images))
            hidden_NSD = layer.feed_forward_chunk_query(queries_NQD)
            if text_NTD.shape[1]:
                hidden_NSD = torch.cat([hidden_NSD, layer.feed_forward_chunk(text_NTD)], dim=1)
        return hidden_NSD


def _heads(attention: Any, projected: torch.Tensor) -> torch.Tensor:
    """Split [N, S, H x K] into heads, [N, H, S, K]."""
    return projected.view(*projected.shape[:2], attention.num_attention_heads, -1).transpose(1, 2)


def _attend(
    crossattention: Any, queries_NQD: torch.Tensor, key_NHPK: torch.Tensor, value_NHPK: torch.Tensor
) -> torch.Tensor:
    """Run a block of cross-attention with given keys and values; return [N, Q, D]."""
    attention = crossattention.attention
    query_NHQK = _heads(attention, attention.query(queries_NQD))
    if query_NHQK.device.type == "cpu" and query_NHQK.dtype != torch.float32:
        # torch's fused attention is slow for bfloat16 on a CPU: see `choose_attention`.
        scores_NHQP = torch.matmul(query_NHQK, key_NHPK.transpose(-1, -2)) * attention.scaling
        attended_NHQK = torch.matmul(scores_NHQP.softmax(-1), value_NHPK)
    else:
        attended_NHQK = functional.scaled_dot_product_attention(
            query_NHQK, key_NHPK, value_NHPK, scale=attention.scaling
        )
    output_NQD: torch.Tensor = crossattention.output(attended_NHQK.transpose(1, 2).flatten(2), queries_NQD)
    return output_NQD
