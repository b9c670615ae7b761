"""Changes scores before a token is chosen: transformers' rules, and sampling that does not depend on the batch.

Sampling is the Gumbel-max trick: adding noise to the filtered logits and taking the largest has the same distribution
as drawing from their softmax (Gumbel 1954). The noise is a hash of (row's seed, step, token), so a row draws the same
numbers in any batch.

Shapes: N = rows, V = vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.transfer import to_device

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

    They change scores as transformers' processors do, for rows of different lengths at once, and wait for no device.
    """

    def __init__(self, options: GenerateOptions, ends: Sequence[int], device: torch.device) -> None:
        self.options = options
        self.ends = torch.tensor(ends, dtype=torch.long, device=device)
        self.given_MG = torch.empty((0, 0), dtype=torch.long, device=device)
        """Ids before the first new one, at the right end of each row; -1 fills the others."""
        self.active = (
            options.repetition_penalty != 1.0
            or options.no_repeat_ngram_size > 0
            or (options.min_new_tokens > 0 and len(ends) > 0)
        )

    def start(self, given: Sequence[Sequence[int]]) -> None:
        """Add texts, in the slots after the existing ones, with their ids before the first new one."""
        if not self.active:
            return
        width = max(self.given_MG.shape[1], *map(len, given))
        padded_MG = to_device([[-1] * (width - len(ids)) + list(ids) for ids in given], self.given_MG.device)
        before_MG = functional.pad(self.given_MG, (width - self.given_MG.shape[1], 0), value=-1)
        self.given_MG = torch.cat([before_MG, padded_MG])

    def keep(self, slots_M: torch.Tensor) -> None:
        """Keep these slots, in this order."""
        if self.active:
            self.given_MG = self.given_MG[slots_M]

    def apply(self, first: int, ids_NT: torch.Tensor, num_chosen_N: torch.Tensor, scores_NV: torch.Tensor) -> None:
        """Change the scores of the slots from `first` on, in place, given the new ids of their rows so far."""
        given_MG = self.given_MG[first:]
        given_NG = given_MG.repeat_interleave(len(ids_NT) // len(given_MG), dim=0)
        ids_NS, end_N1 = torch.cat([given_NG, ids_NT], dim=1), given_NG.shape[1] + num_chosen_N.unsqueeze(1)
        if self.options.repetition_penalty != 1.0:
            self._penalise_repetition(ids_NS, end_N1, scores_NV)
        if self.options.no_repeat_ngram_size > 0:
            self._block_ngrams(ids_NS, end_N1, scores_NV)
        if self.options.min_new_tokens > 0 and len(self.ends):
            is_short_N1 = num_chosen_N.unsqueeze(1) < self.options.min_new_tokens
            scores_NV[:, self.ends] = scores_NV[:, self.ends].masked_fill(is_short_N1, float("-inf"))

    def _penalise_repetition(self, ids_NS: torch.Tensor, end_N1: torch.Tensor, scores_NV: torch.Tensor) -> None:
        """Make the tokens of each row before its end less likely, once each."""
        is_used_NS = (torch.arange(ids_NS.shape[1], device=ids_NS.device) < end_N1) & (ids_NS >= 0)
        ids_NS = torch.where(is_used_NS, ids_NS, ids_NS.gather(1, end_N1 - 1))
        scores_NS, penalty = scores_NV.gather(1, ids_NS), self.options.repetition_penalty
        scores_NV.scatter_(1, ids_NS, torch.where(scores_NS < 0, scores_NS * penalty, scores_NS / penalty))

    def _block_ngrams(self, ids_NS: torch.Tensor, end_N1: torch.Tensor, scores_NV: torch.Tensor) -> None:
        """Exclude tokens that would complete an n-gram for the second time."""
        (num_rows, vocabulary), size = scores_NV.shape, self.options.no_repeat_ngram_size
        if ids_NS.shape[1] < size:
            return
        ngrams_NWn = ids_NS.unfold(1, size, 1)
        last = end_N1 + torch.arange(1 - size, 0, device=ids_NS.device)
        last_N1n = ids_NS.gather(1, last.clamp(min=0)).unsqueeze(1)
        is_whole_NW = torch.arange(size, ids_NS.shape[1] + 1, device=ids_NS.device) <= end_N1
        is_blocked_NW = (ngrams_NWn[..., :-1] == last_N1n).all(-1) & is_whole_NW & (ngrams_NWn[..., 0] >= 0)
        # One column more, for n-grams that block nothing.
        blocked_NV = torch.zeros((num_rows, vocabulary + 1), dtype=torch.bool, device=ids_NS.device)
        blocked_NV.scatter_(1, ngrams_NWn[..., -1].masked_fill(~is_blocked_NW, vocabulary), True)
        scores_NV.masked_fill_(blocked_NV[:, :-1], float("-inf"))


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
