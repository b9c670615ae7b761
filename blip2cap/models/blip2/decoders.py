"""The interface of lean decoders, and the language models that have one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from blip2cap.models.blip2.cache import Cache
from blip2cap.models.blip2.opt import OptDecoder
from blip2cap.models.blip2.sampling import unusual_settings
from blip2cap.models.blip2.t5 import T5Decoder

_DECODERS: dict[str, type[OptDecoder] | type[T5Decoder]] = {"opt": OptDecoder, "t5": T5Decoder}


class Decoder(Protocol):
    """A language model that runs image and prompt at once, then one token at a time."""

    def num_given(self, num_prefix: int) -> int:
        """Return the number of positions that a row uses before its first new token."""

    def new_cache(self, num_rows: int, num_prefix: int, max_new_tokens: int, num_beams: int = 1) -> Cache:
        """Allocate a cache for prefixes of at most `num_prefix` tokens."""

    def step_sizes(self, num_rows: int) -> Sequence[int]:
        """Return the numbers of rows that a step of a cache with `num_rows` may have, in ascending order."""

    def forget(self) -> None:
        """Release everything that refers to the last cache."""

    def bytes_per_row(self, num_prefix: int, max_new_tokens: int, num_beams: int = 1) -> int:
        """Return the memory that a row of such a cache takes."""

    def prefill(
        self,
        image_IQD: torch.Tensor,
        image_of_N: torch.Tensor,
        prompts: Sequence[torch.Tensor],
        cache: Cache,
        first_row: int,
    ) -> torch.Tensor:
        """Run image and prompt of N texts, fill the cache, and return the logits of the next token, [N, V].

        Each of `prompts` holds the ids, [n, T], of the next n texts, whose prompts have the same length.
        """

    def step(self, ids_N: torch.Tensor, positions_M: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
        """Run one token of each beam of the first M rows; return the logits of the next token, [N, V].

        N = M x beams: the beams of a row are adjacent. No beam sees an index of the cache from `length` on.
        """


def fuse(network: Any) -> None:
    """Fuse projections of the language model in place, if it has a lean decoder."""
    decoder = _DECODERS.get(network.language_model.config.model_type)
    if decoder is not None:
        decoder.fuse(network.language_model)


def make_decoder(network: Any) -> Decoder | None:
    """Return the lean decoder of a network's language model; None if it has a `fallback_reason`."""
    decoder = _DECODERS.get(network.language_model.config.model_type)
    return None if decoder is None or fallback_reason(network) else decoder(network.language_model)


def fallback_reason(network: Any) -> str:
    """Return the reason why texts of a network go through transformers' own `generate`; "" if they do not."""
    language_model = network.language_model
    if language_model.config.model_type not in _DECODERS:
        return f"{language_model.config.model_type} has no decoder of its own in blip2cap"
    if len(set(getattr(network, "hf_device_map", {}).values())) > 1:
        return "the model is spread over several devices"
    unusual = unusual_settings(language_model.generation_config)
    return f"the checkpoint's generation config sets {', '.join(unusual)}" if unusual else ""
