"""Generation options as transformers takes them, and sampling that does not depend on the batch.

Sampling is the Gumbel-max trick: noise added to the filtered logits, then the largest taken, has the same distribution
as drawing from their softmax (Gumbel 1954). The noise is a hash of (row's seed, step, token), so a row draws the same
numbers alone or among others.
"""

from __future__ import annotations

import copy
import hashlib

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from blip2cap.options import GenerateOptions

_MASK = 0xFFFFFFFF


def generation_config(base: GenerationConfig, options: GenerateOptions) -> GenerationConfig:
    """Put the options on top of the checkpoint's own special tokens."""
    config = copy.deepcopy(base)
    config.update(
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens or None,
        max_length=None,
        min_length=None,
        num_beams=options.num_beams,
        do_sample=False,
        num_return_sequences=1 if options.sampling else options.num_captions,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        length_penalty=options.length_penalty,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    return config


def sampling_processors(options: GenerateOptions, seeds: torch.Tensor) -> list[LogitsProcessor]:
    """What follows the built-in processors when sampling; empty without. `seeds` is int64 [rows]."""
    if options.temperature is None:
        return []
    processors: list[LogitsProcessor] = [TemperatureLogitsWarper(options.temperature)]
    if options.top_k is not None:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p is not None and options.top_p < 1:
        processors.append(TopPLogitsWarper(options.top_p))
    return [*processors, _GumbelNoise(seeds)]


def row_seed(seed: int, name: str, copy_index: int) -> int:
    """Seed of one text: a 31-bit hash of the run's seed, the image's name and which of its texts it is."""
    digest = hashlib.blake2b(f"{seed}\0{copy_index}\0{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


class _GumbelNoise(LogitsProcessor):
    """Adds -log(-log(u)) with u hashed from row, step and token."""

    def __init__(self, seeds: torch.Tensor) -> None:
        self.seeds_N1 = seeds.unsqueeze(1)
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens_1V = torch.arange(scores.shape[-1], device=scores.device).unsqueeze(0)
        step_N1 = _mix(self.seeds_N1 + 0x9E3779B9 * (self.step + 1))
        bits_NV = _mix(step_N1 ^ _mix(tokens_1V + 0x85EBCA6B))
        uniform_NV = (bits_NV.double() + 0.5) / 2**32
        self.step += 1
        return scores.double() - (-uniform_NV.log()).log()


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Finalise a 32-bit hash, as MurmurHash3 does (public domain, A. Appleby), in int64."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)
