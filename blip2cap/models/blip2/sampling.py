"""Changes scores before a token is chosen: transformers' rules, and sampling that does not depend on the batch.

Sampling is the Gumbel-max trick: adding noise to the filtered logits and taking the largest has the same distribution
as drawing from their softmax (Gumbel 1954). The noise is a hash of (row's seed, step, token), so a row draws the same
numbers in any batch.

Shapes: N = rows, V = vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from blip2cap.options import GenerateOptions

_MASK = 0xFFFFFFFF
_COVERED = frozenset(
    {
        *("max_length", "min_length", "max_new_tokens", "min_new_tokens", "num_beams", "do_sample", "use_cache"),
        *("num_return_sequences", "repetition_penalty", "no_repeat_ngram_size", "length_penalty"),
        *("temperature", "top_p", "top_k", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
        *("transformers_version", "_from_model_config", "return_dict_in_generate", "output_attentions"),
        *("output_hidden_states", "output_scores", "output_logits", "cache_implementation", "num_beam_groups"),
    }
)
"""Settings of a generation config that our options replace, or that do not change texts."""


def generation_config(base: GenerationConfig, options: GenerateOptions) -> GenerationConfig:
    """Return the checkpoint's generation config, with our options and its own special tokens."""
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


def unusual_settings(base: GenerationConfig) -> list[str]:
    """Return the names of the settings in a generation config that only transformers' own `generate` supports."""
    return sorted(
        name for name, value in base.to_diff_dict().items() if name not in _COVERED and value not in (None, {})
    )


def end_ids(base: GenerationConfig) -> list[int]:
    """Return the ids that end a text."""
    ends = base.eos_token_id
    if ends is None:
        return []
    return list(ends) if isinstance(ends, (list, tuple)) else [ends]


class Rules:
    """Rules that depend on the tokens of a text so far: repetition, n-grams, minimum length.

    transformers' processors expect rows of one length, so rows are grouped by length.
    """

    def __init__(self, options: GenerateOptions, ends: Sequence[int], device: torch.device) -> None:
        self.options = options
        self.ends = torch.tensor(ends, device=device)
        self.processors: dict[int, LogitsProcessorList] = {}
        """By number of given ids."""
        self.active = (
            options.repetition_penalty != 1.0
            or options.no_repeat_ngram_size > 0
            or (options.min_new_tokens > 0 and len(ends) > 0)
        )

    def apply(self, sequences: Sequence[Sequence[int]], num_given: Sequence[int], scores_NV: torch.Tensor) -> None:
        """Change the scores of rows in place, given the ids of each row, of which `num_given` were not generated."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, (sequence, given) in enumerate(zip(sequences, num_given, strict=True)):
            groups[given, len(sequence)].append(index)
        for (given, _), indices in groups.items():
            rows = torch.tensor(indices, device=scores_NV.device)
            ids = torch.tensor([sequences[index] for index in indices], device=scores_NV.device)
            scores_NV[rows] = self._processors(given)(ids, scores_NV[rows])

    def _processors(self, given: int) -> LogitsProcessorList:
        if given not in self.processors:
            processors = LogitsProcessorList()
            if self.options.repetition_penalty != 1.0:
                processors.append(RepetitionPenaltyLogitsProcessor(self.options.repetition_penalty))
            if self.options.no_repeat_ngram_size > 0:
                processors.append(NoRepeatNGramLogitsProcessor(self.options.no_repeat_ngram_size))
            if self.options.min_new_tokens > 0 and len(self.ends):
                processors.append(
                    MinNewTokensLengthLogitsProcessor(
                        given, self.options.min_new_tokens, self.ends, device=str(self.ends.device)
                    )
                )
            self.processors[given] = processors
        return self.processors[given]


class Sampler:
    """Temperature, top-k, top-p, and the noise that makes the largest score a random draw."""

    def __init__(self, options: GenerateOptions) -> None:
        assert options.temperature is not None
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(options.temperature)])
        if options.top_k is not None:
            self.warpers.append(TopKLogitsWarper(options.top_k))
        if options.top_p is not None and options.top_p < 1:
            self.warpers.append(TopPLogitsWarper(options.top_p))

    def apply(self, scores_NV: torch.Tensor, seeds_N: torch.Tensor, steps_N: torch.Tensor) -> torch.Tensor:
        """Return scores whose largest is the drawn token, given each row's seed and number of tokens so far."""
        warped_NV: torch.Tensor = self.warpers(None, scores_NV)
        return warped_NV.double() + gumbel_noise(seeds_N, steps_N, scores_NV.shape[-1])


class SeededSampling(LogitsProcessor):
    """A Sampler for transformers' `generate`, whose rows all start together."""

    def __init__(self, options: GenerateOptions, seeds_N: torch.Tensor) -> None:
        self.sampler, self.seeds_N, self.step = Sampler(options), seeds_N, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores whose largest is the drawn token."""
        steps_N = torch.full_like(self.seeds_N, self.step)
        self.step += 1
        return self.sampler.apply(scores, self.seeds_N, steps_N)


def row_seed(seed: int, name: str, copy_index: int) -> int:
    """Return the seed of one text, a 31-bit hash of the run's seed, the image's name and the number of the text."""
    digest = hashlib.blake2b(f"{seed}\0{copy_index}\0{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def gumbel_noise(seeds_N: torch.Tensor, steps_N: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Return -log(-log(u)), float64 [N, V], with u hashed from row, step and token."""
    tokens_1V = torch.arange(num_tokens, device=seeds_N.device).unsqueeze(0)
    step_N1 = _mix(seeds_N + 0x9E3779B9 * (steps_N + 1)).unsqueeze(1)
    bits_NV = _mix(step_N1 ^ _mix(tokens_1V + 0x85EBCA6B))
    uniform_NV = (bits_NV.double() + 0.5) / 2**32
    return -(-uniform_NV.log()).log()


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Finalise a 32-bit hash, as MurmurHash3 does (public domain, A. Appleby), in int64."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)
