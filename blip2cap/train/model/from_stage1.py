"""The vision encoder, queries and Q-Former of a finished stage 1, put into a model with a language model."""

from __future__ import annotations

from typing import Any

import torch

from blip2cap.errors import UsageError
from blip2cap.models.blip2.model import NETWORK_CLASSES
from blip2cap.models.checkpoint import find
from blip2cap.models.loading import library_errors, read_network
from blip2cap.options import ModelOptions
from blip2cap.train.model.positions import resize_positions


def replace_qformer(model: Any, name: str, *, seed: int) -> None:
    """Replace vision encoder, queries and Q-Former of a network, in place; its projection starts again at random.

    `name` is a folder of a finished stage 1, or the name of an image-text matching model. Raises UsageError if it is
    another model, or of other sizes, and ModelError if it cannot be loaded.
    """
    checkpoint = find(ModelOptions(name=name))
    if checkpoint.family != "matching":
        raise UsageError(
            f"--qformer-from {name}: a model of the family {checkpoint.family}. Expected a RUN of `train stage1`, or "
            "an image-text matching model."
        )
    if model.config.model_type != checkpoint.config["model_type"]:
        raise UsageError(
            f"--qformer-from {name}: not for {model.config.model_type}, whose Q-Former reads instructions. "
            "Leave it out."
        )
    with library_errors(checkpoint):
        source = read_network(NETWORK_CLASSES["matching"], checkpoint, dtype=torch.float32)
    found = source.state_dict()
    resize_positions(model, int(source.config.vision_config.image_size))
    parts = ("vision_model.", "query_tokens", "qformer.")
    # Layers of the Q-Former for texts, and the projections of stage 1, have no place in such a model.
    needed = {key: value for key, value in model.state_dict().items() if key.startswith(parts)}
    differs = [key for key, value in needed.items() if key not in found or found[key].shape != value.shape]
    if differs:
        raise UsageError(
            f"--qformer-from {name}: does not fit --model: {len(differs)} tensors are missing or of another shape, "
            f"such as {differs[0]}. Expected vision encoder, queries and Q-Former of the same sizes."
        )
    model.load_state_dict({key: found[key] for key in needed}, strict=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.language_projection.reset_parameters()
