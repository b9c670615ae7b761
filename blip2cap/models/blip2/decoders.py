"""Which language models have a lean decoder here, and what every one of them can do."""

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
    """A language model that takes image and prompt, then a token at a time."""

    def num_given(self, num_prefix: int) -> int:
        """How many positions of a row are taken before its first new token."""

    def new_cache(self, num_rows: int, num_prefix: int, max_new_tokens: int) -> Cache:
        """Allocate a cache for prefixes of at most `num_prefix` tokens."""

    def forget(self) -> None:
        """Let go of what is kept of the last cache."""

    def bytes_per_row(self, num_prefix: int, max_new_tokens: int) -> int:
        """Return how much memory a row of such a cache takes."""

    def prefill(
        self,
        image_IQD: torch.Tensor,
        image_of_N: torch.Tensor,
        prompts: Sequence[torch.Tensor],
        cache: Cache,
        first_row: int,
        num_beams: int = 1,
    ) -> torch.Tensor:
        """Run image and prompt of N texts into the cache; return the logits that follow, [N, V].

        Each of `prompts` holds the ids, [n, T], of the next n texts, which are equally long.
        """

    def step(self, ids_N: torch.Tensor, positions_N: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
        """Run one token of each of the first N rows; return the logits that follow, [N, V]."""


def fuse(network: Any) -> None:
    """Fuse projections of the language model in place, where it has a lean decoder."""
    decoder = _DECODERS.get(network.language_model.config.model_type)
    if decoder is not None:
        decoder.fuse(network.language_model)


def make_decoder(network: Any) -> Decoder | None:
    """Return the lean decoder of a network's language model; None where there is none, `why_none` says why."""
    decoder = _DECODERS.get(network.language_model.config.model_type)
    return None if decoder is None or why_none(network) else decoder(network.language_model)


def why_none(network: Any) -> str:
    """Say why transformers' own `generate` has to write the texts of a network; "" if it has not."""
    language_model = network.language_model
    if language_model.config.model_type not in _DECODERS:
        return f"{language_model.config.model_type} has no decoder of its own in blip2cap"
    if len(set(getattr(network, "hf_device_map", {}).values())) > 1:
        return "the model is spread over several devices"
    unusual = unusual_settings(language_model.generation_config)
    return f"the checkpoint's generation config sets {', '.join(unusual)}" if unusual else ""
