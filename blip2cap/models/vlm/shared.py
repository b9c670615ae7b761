"""Several prompts about one image: the tokens up to the end of the image are computed once for all of them.

They are most of a prompt: 576 of 600 tokens in LLaVA. The image goes through its processor and its encoder once, and
its keys and values are copied for every prompt.

Shapes: I = images, N = rows, P = tokens of the prefix, S = tokens after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from blip2cap.decode.image import Pixels
from blip2cap.models.vlm.prompts import Prompter


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrompts:
    """Prompts divided into what the prompts of an image share, and the rest of each; both are padded on the left."""

    prefix: dict[str, torch.Tensor]
    """Inputs of the network for the prefix of each image, as of a processor."""
    ids_NS: torch.Tensor
    mask_NS: torch.Tensor
    image_of_N: torch.Tensor
    """Number of the image of each row."""


def share(prompter: Prompter, images: Sequence[Pixels], texts: Sequence[str]) -> SharedPrompts | None:
    """Divide the prompts of rows, given the image and the text of each; rows of one image have the same array.

    Returns None if no two rows have the same image, or if the parts of a prompt do not make its whole: then tokens
    depend on what is before the image in a way that is not known here. Raises one of `prompts.PROCESSOR_ERRORS`.
    """
    first_rows: dict[int, int] = {}
    for row, pixels_HWC in enumerate(images):
        first_rows.setdefault(id(pixels_HWC), row)
    if len(first_rows) == len(images):
        return None
    rests = [prompter.ids_after_image(text) for text in texts]
    firsts = [*first_rows.values()]
    inputs = prompter.inputs([images[row] for row in firsts], [texts[row] for row in firsts])
    prefixes: list[int] = []
    for ids, mask, row in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), firsts, strict=True):
        rest = rests[row]
        if not rest or ids[-len(rest) :] != rest or sum(mask) <= len(rest):
            return None
        prefixes.append(len(rest))
    image_numbers = {image: number for number, image in enumerate(first_rows)}
    longest = max(map(len, rests))
    pad = prompter.tokenizer.pad_token_id or 0
    return SharedPrompts(
        prefix=_without_rests(inputs, prefixes),
        ids_NS=torch.tensor([[pad] * (longest - len(rest)) + rest for rest in rests]),
        mask_NS=torch.tensor([[0] * (longest - len(rest)) + [1] * len(rest) for rest in rests]),
        image_of_N=torch.tensor([image_numbers[id(pixels_HWC)] for pixels_HWC in images]),
    )


def _without_rests(inputs: dict[str, torch.Tensor], num_after: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return inputs without the last tokens of each row, as many as `num_after` says, again padded on the left."""
    shape = inputs["input_ids"].shape
    shortened = dict(inputs)
    for name, values in inputs.items():
        if values.shape == shape:  # of each token
            rows = [torch.roll(row, count) for row, count in zip(values, num_after, strict=True)]
            shortened[name] = torch.stack(rows)[:, min(num_after) :]
    mask = shortened["attention_mask"].clone()
    for row, count in enumerate(num_after):
        mask[row, : count - min(num_after)] = 0  # ids that were rolled to the front
    shortened["attention_mask"] = mask
    return shortened


def compute_prefix(network: Any, shared: SharedPrompts) -> dict[str, Any]:
    """Compute the prefix of each image once; return the inputs of `generate` for all rows, with its cache."""
    mask_IP = shared.prefix["attention_mask"]
    position_ids_IP = (mask_IP.cumsum(-1) - 1).clamp(min=0)
    cache = network(**shared.prefix, position_ids=position_ids_IP, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_select_indices(shared.image_of_N)
    ids_NT = torch.cat([shared.prefix["input_ids"][shared.image_of_N], shared.ids_NS], dim=1)
    mask_NT = torch.cat([mask_IP[shared.image_of_N], shared.mask_NS], dim=1)
    return {"input_ids": ids_NT, "attention_mask": mask_NT, "past_key_values": cache}
