"""Reads how a checkpoint's image processor normalises pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from blip2cap.errors import ModelError
from blip2cap.models.base import Checkpoint, read_json

_BICUBIC = 3
_PROCESSOR_SETTINGS = (
    *("image_mean", "image_std", "size", "resample", "rescale_factor"),
    *("do_resize", "do_rescale", "do_normalize", "do_center_crop"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """Input of the vision encoder: (pixels / 255 - mean) / std for each channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_normalisation(checkpoint: Checkpoint) -> Normalisation:
    """Read the image processor's settings. Raises ModelError for settings that this package does not follow."""
    settings: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = checkpoint.folder / name
        if path.is_file():
            content = read_json(checkpoint.name, path)
            settings |= content.get("image_processor") or {}
            settings |= {key: content[key] for key in _PROCESSOR_SETTINGS if key in content}
    side = checkpoint.image_size
    differs = {
        "resample": settings.get("resample", _BICUBIC) != _BICUBIC,
        "size": settings.get("size", side) not in (side, {"height": side, "width": side}),
        "rescale_factor": abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6,
        "do_center_crop": bool(settings.get("do_center_crop")),
        **{name: settings.get(name) is False for name in ("do_resize", "do_normalize", "do_rescale")},
    }
    for name in (name for name in differs if differs[name]):
        raise ModelError(
            f"--model {checkpoint.name}: its image processor has {name} = {settings[name]}. Expected bicubic "
            f"resize to {side} x {side}, divided by 255 and normalised."
        )
    mean, std = settings.get("image_mean", OPENAI_CLIP_MEAN), settings.get("image_std", OPENAI_CLIP_STD)
    return Normalisation(mean=tuple(mean), std=tuple(std))
