"""Generates a few tokens at a time, and lets texts that have ended leave the batch in between.

transformers' `generate` computes every text up to the end of the longest; here the others stop soon after their own.

Shapes: N = rows of the batch, M = rows whose text has not ended, T = tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from blip2cap.models.blip2.sampling import SeededSampling

_PART = 8
"""Number of tokens after which texts may leave: each part costs a call of `generate`."""


def generate_in_parts(
    network: Any,
    inputs: dict[str, Any],
    config: GenerationConfig,
    processors: LogitsProcessorList,
    *,
    ends: Collection[int],
) -> list[list[int]]:
    """Return the new tokens of each row, up to its end; greedy or with SeededSampling, for models without an encoder.

    `inputs` are those of `generate`; its attention mask must have all tokens, also those of a given cache.
    """
    num_left = int(config.max_new_tokens)
    rows_M = list(range(len(inputs["input_ids"])))
    new: list[list[int]] = [[] for _ in rows_M]
    config.return_dict_in_generate = True
    while rows_M and num_left:
        config.max_new_tokens = min(_PART, num_left)
        num_given = inputs["input_ids"].shape[1]
        output = network.generate(**inputs, generation_config=config, logits_processor=processors)
        ids_MT = output.sequences
        kept = []
        for at, ids in enumerate(ids_MT[:, num_given:].tolist()):
            length = next((index + 1 for index, token in enumerate(ids) if token in ends), None)
            new[rows_M[at]] += ids[:length]
            if length is None:
                kept.append(at)
        num_left -= config.max_new_tokens
        rows_M = [rows_M[at] for at in kept]
        if rows_M and num_left:
            keep_M = torch.tensor(kept, device=ids_MT.device)
            inputs = _continued(inputs["attention_mask"], ids_MT, output.past_key_values, keep_M)
            for each in processors:
                if isinstance(each, SeededSampling):
                    each.keep(keep_M)
    return new


def _continued(mask_NT: torch.Tensor, ids_NT: torch.Tensor, cache: Any, keep_M: torch.Tensor) -> dict[str, Any]:
    """Return the inputs of the next part for the rows that are kept."""
    if len(keep_M) < len(ids_NT):
        cache.batch_select_indices(keep_M)
    num_new = ids_NT.shape[1] - mask_NT.shape[1]
    mask_MT = torch.cat([mask_NT, mask_NT.new_ones((len(ids_NT), num_new))], dim=1)[keep_M]
    return {"input_ids": ids_NT[keep_M], "attention_mask": mask_MT, "past_key_values": cache}
