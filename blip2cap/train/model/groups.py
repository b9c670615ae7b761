"""Parameter groups of AdamW: no decay on norms and biases, lower rates for lower layers of the vision encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from blip2cap.train.options.model import OptimOptions

_VISION_LAYER = re.compile(r"vision_model\.encoder\.layers\.([0-9]+)\.")


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], options: OptimOptions, *, num_vision_layers: int
) -> list[dict[str, Any]]:
    """Return groups with `params`, their `names`, `lr` and `weight_decay`, in the order of first use.

    As in LAVIS, the rate of the last layer of the vision encoder is `vision_layer_decay` times that of what follows it,
    and so on downwards; the embeddings of the patches are below the first layer.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        decay = 0.0 if parameter.ndim < 2 or name.endswith(".bias") else options.weight_decay
        rate = options.learning_rate * options.vision_layer_decay ** _depth(name, num_vision_layers)
        group = groups.setdefault((rate, decay), {"params": [], "names": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _depth(name: str, num_vision_layers: int) -> int:
    """Return the depth of a parameter in the vision encoder: 1 in its last layer; 0 for what follows it."""
    if "vision_model.embeddings." in name:
        return num_vision_layers + 1
    layer = _VISION_LAYER.search(name)
    return 0 if layer is None else num_vision_layers - int(layer[1])
