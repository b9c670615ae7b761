"""Another image size for a vision encoder.

Shapes: P = patches in a row or column, N = position embeddings, D = hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from blip2cap.errors import UsageError


def resize_positions(model: Any, image_size: int) -> None:
    """Make a network take images of another size, in place: its position embeddings are interpolated, bicubic.

    Raises UsageError if the size is no multiple of the patch size.
    """
    embeddings = model.vision_model.embeddings
    patch_size = int(embeddings.patch_size)
    if image_size % patch_size:
        below = max(patch_size, image_size // patch_size * patch_size)
        raise UsageError(
            f"--image-size {image_size}: must be a multiple of the patch size of this model, {patch_size}: "
            f"{below} or {below + patch_size}."
        )
    old_1ND = embeddings.position_embedding.data
    num_old, num_new = int(embeddings.image_size) // patch_size, image_size // patch_size
    if num_new != num_old:
        class_11D, patches_1ND = old_1ND[:, :1], old_1ND[:, 1:]
        grid_1DPP = patches_1ND.transpose(1, 2).unflatten(2, (num_old, num_old))
        resized_1DPP = functional.interpolate(grid_1DPP, size=(num_new, num_new), mode="bicubic", align_corners=False)
        new_1ND = torch.cat([class_11D, resized_1DPP.flatten(2).transpose(1, 2)], dim=1)
        embeddings.position_embedding = nn.Parameter(new_1ND.contiguous())
    embeddings.image_size = image_size
    embeddings.num_patches, embeddings.num_positions = num_new**2, num_new**2 + 1
    for config in (model.config.vision_config, model.vision_model.config):
        config.image_size = image_size
