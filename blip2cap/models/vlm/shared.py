"""Prompts about images -> their keys and values; the tokens up to the end of an image are computed once for all of its
prompts.

They are most of a prompt: 576 of 600 tokens in LLaVA. The image goes through its processor and its encoder once, and
its keys and values are copied for every prompt.

Shapes: I = images, N, M = rows, P = tokens of the prefix, S = tokens after it, T = tokens; padded on the left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn import functional
from transformers.cache_utils import Cache

from blip2cap.decode.image import Pixels
from blip2cap.models.vlm.cache import new_cache
from blip2cap.models.vlm.prompts import Prompter

OnDevice: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrompts:
    """Prompts divided into what the prompts of an image share, and the rest of each, at least a token."""

    prefix: dict[str, torch.Tensor]
    """Inputs of the network for the prefix of each image, as of a processor."""
    ids_NS: torch.Tensor
    mask_NS: torch.Tensor
    image_of_N: torch.Tensor
    """Number of the image of each row."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the longest prompt at most."""
        return self.prefix["input_ids"].shape[1] + self.ids_NS.shape[1]


@dataclass(kw_only=True, slots=True)
class Computed:
    """Texts of which all tokens but the last are computed."""

    cache: Cache
    """Keys and values of all tokens but the last, in layers of `cache.RoomyLayer`."""
    ids_NT: torch.Tensor
    mask_NT: torch.Tensor
    """1 for tokens, 0 for padding."""
    shifts_N1: torch.Tensor | None
    """Distance of the position of each text's tokens from their number; None where they are the same."""

    def ids(self) -> list[list[int]]:
        """Return the tokens of each text, without padding."""
        pairs = zip(self.ids_NT.tolist(), self.mask_NT.tolist(), strict=True)
        return [[token for token, is_token in zip(ids, mask, strict=True) if is_token] for ids, mask in pairs]

    def positions(self, first: int) -> torch.Tensor:
        """Return the positions of the tokens from `first` on, for the network."""
        positions_NS = _positions(self.mask_NT)[:, first:]
        if self.shifts_N1 is None:
            return positions_NS
        return (positions_NS + self.shifts_N1).expand(3, -1, -1)  # time, row and column of a text are the same

    def add(self, ids_N1: torch.Tensor) -> None:
        """Add the next token of each text."""
        self.ids_NT = torch.cat([self.ids_NT, ids_N1], dim=1)
        self.mask_NT = functional.pad(self.mask_NT, (0, 1), value=1)

    def join(self, other: Computed) -> None:
        """Add other texts."""
        for layer, new in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.join(new)
        self.ids_NT, self.mask_NT = _below(self.ids_NT, other.ids_NT), _below(self.mask_NT, other.mask_NT)
        if self.shifts_N1 is not None and other.shifts_N1 is not None:
            self.shifts_N1 = torch.cat([self.shifts_N1, other.shifts_N1])

    def select(self, rows_M: torch.Tensor) -> None:
        """Keep these texts, in this order, without padding that all of them have."""
        mask_MT = self.mask_NT[rows_M]
        first = int(mask_MT.any(0).to(torch.uint8).argmax())
        for layer in self.cache.layers:
            layer.select(rows_M, first)
        self.ids_NT, self.mask_NT = self.ids_NT[rows_M, first:], mask_MT[:, first:]
        if self.shifts_N1 is not None:
            self.shifts_N1 = self.shifts_N1[rows_M]


def _positions(mask_NT: torch.Tensor) -> torch.Tensor:
    """Return the number of each token in its row, from 0 on."""
    return (mask_NT.cumsum(-1) - 1).clamp(min=0)


def _below(one_NT: torch.Tensor, other_MT: torch.Tensor) -> torch.Tensor:
    """Return the rows of both, padded on the left to the same length."""
    length = max(one_NT.shape[1], other_MT.shape[1])
    return torch.cat([functional.pad(each, (length - each.shape[1], 0)) for each in (one_NT, other_MT)])


def share(prompter: Prompter, images: Sequence[Pixels], texts: Sequence[str]) -> SharedPrompts:
    """Divide the prompts of rows, given the image and the text of each; rows of one image have the same array.

    The parts of a prompt must make its whole: where tokens depend on what is before the image in a way that is not
    known here, each row has an image of its own. Raises one of `prompts.PROCESSOR_ERRORS`.
    """
    first_rows: dict[int, int] = {}
    for row, pixels_HWC in enumerate(images):
        first_rows.setdefault(id(pixels_HWC), row)
    firsts = [*first_rows.values()]
    inputs = prompter.inputs([images[row] for row in firsts], [texts[row] for row in firsts])
    if len(firsts) == len(images):
        return _apart(inputs)
    rests = [prompter.ids_after_image(text) for text in texts]
    nums_after: list[int] = []
    for ids, mask, row in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), firsts, strict=True):
        rest = rests[row]
        if not rest or ids[-len(rest) :] != rest or sum(mask) <= len(rest):
            return _apart(prompter.inputs(images, texts))
        nums_after.append(len(rest))
    image_numbers = {image: number for number, image in enumerate(first_rows)}
    longest = max(map(len, rests))
    pad = prompter.tokenizer.pad_token_id or 0
    return SharedPrompts(
        prefix=_without_rests(inputs, nums_after),
        ids_NS=torch.tensor([[pad] * (longest - len(rest)) + rest for rest in rests]),
        mask_NS=torch.tensor([[0] * (longest - len(rest)) + [1] * len(rest) for rest in rests]),
        image_of_N=torch.tensor([image_numbers[id(pixels_HWC)] for pixels_HWC in images]),
    )


def _apart(inputs: dict[str, torch.Tensor]) -> SharedPrompts:
    """Return prompts of which each has an image of its own: the last token is the rest."""
    ids_NT, mask_NT = inputs["input_ids"], inputs["attention_mask"]
    return SharedPrompts(
        prefix=_without_rests(inputs, [1] * len(ids_NT)),
        ids_NS=ids_NT[:, -1:],
        mask_NS=mask_NT[:, -1:],
        image_of_N=torch.arange(len(ids_NT)),
    )


def _without_rests(inputs: dict[str, torch.Tensor], nums_after: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return inputs without the last tokens of each row, as many as `nums_after` says, again padded on the left."""
    shape = inputs["input_ids"].shape
    shortened = dict(inputs)
    for name, values in inputs.items():
        if values.shape == shape:  # of each token
            rows = [torch.roll(row, count) for row, count in zip(values, nums_after, strict=True)]
            shortened[name] = torch.stack(rows)[:, min(nums_after) :]
    mask = shortened["attention_mask"].clone()
    for row, count in enumerate(nums_after):
        mask[row, : count - min(nums_after)] = 0  # ids that were rolled to the front
    shortened["attention_mask"] = mask
    return shortened


def compute(network: Any, prompts: SharedPrompts, on_device: OnDevice, *, has_grid_positions: bool) -> Computed:
    """Compute the prefix of each image once, and the rests; `on_device` makes a tensor an input of the network."""
    prefix = {name: on_device(value) for name, value in prompts.prefix.items()}
    ids_NS, mask_NS, image_of_N = map(on_device, (prompts.ids_NS, prompts.mask_NS, prompts.image_of_N))
    mask_IP, cache = prefix["attention_mask"], new_cache()
    if not has_grid_positions:
        prefix["position_ids"] = _positions(mask_IP)
    network(**prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
    if len(image_of_N) > len(mask_IP):
        for layer in cache.layers:
            layer.select(image_of_N, 0)
    computed = Computed(
        cache=cache,
        ids_NT=torch.cat([prefix["input_ids"][image_of_N], ids_NS], dim=1),
        mask_NT=torch.cat([mask_IP[image_of_N], mask_NS], dim=1),
        # Left there by the call above.
        shifts_N1=on_device(network.model.rope_deltas)[image_of_N] if has_grid_positions else None,
    )
    num_left = ids_NS.shape[1] - 1
    if num_left:
        network(
            input_ids=ids_NS[:, :-1],
            attention_mask=computed.mask_NT[:, :-1],
            position_ids=computed.positions(-1 - num_left)[..., :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return computed
