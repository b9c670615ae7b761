"""Another image size for a vision encoder.

Shapes: N = position embeddings, D = hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from blip2cap.errors import UsageError
from blip2cap.models.blip2.positions import interpolate_positions


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
        new_1ND = interpolate_positions(old_1ND, num_new)
        embeddings.position_embedding = nn.Parameter(new_1ND.contiguous())
    embeddings.image_size = image_size
    embeddings.num_patches, embeddings.num_positions = num_new**2, num_new**2 + 1
    for config in (model.config.vision_config, model.vision_model.config):
        config.image_size = image_size
