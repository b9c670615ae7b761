"""A checked folder -> a model on its device, ready to generate."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer, Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from blip2cap.errors import ModelError, UsageError
from blip2cap.model.blip2 import Blip2
from blip2cap.model.checkpoint import Checkpoint, read_json
from blip2cap.options import ModelOptions

_BICUBIC = 3
_PROCESSOR_SETTINGS = (
    *("image_mean", "image_std", "size", "resample", "rescale_factor"),
    *("do_resize", "do_rescale", "do_normalize", "do_center_crop"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """What the vision tower expects: (pixels / 255 - mean) / std, channel by channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load(checkpoint: Checkpoint, options: ModelOptions) -> Blip2:
    """Load the weights from safetensors, and the tokenizer; no network, no code from the folder.

    Raises ModelError if anything is missing, so that no weight is ever left at random.
    """
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device, checkpoint)
    classes = {"blip-2": Blip2ForConditionalGeneration, "instructblip": InstructBlipForConditionalGeneration}
    network_class = classes[checkpoint.config["model_type"]]
    with _quiet_transformers():
        try:
            network, info = network_class.from_pretrained(
                checkpoint.folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
            qformer_tokenizer = None
            if checkpoint.family == "instructblip":
                qformer_tokenizer = AutoTokenizer.from_pretrained(
                    checkpoint.folder / "qformer_tokenizer", local_files_only=True, trust_remote_code=False
                )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
            raise ModelError(
                f"--model {checkpoint.name}: cannot be loaded: {_first_line(error)} `--model tiny` needs no download."
            ) from error
    missing = sorted(info["missing_keys"]) + [str(key[0]) for key in info["mismatched_keys"]]
    if missing:
        raise ModelError(
            f"--model {checkpoint.name}: {len(missing)} weights are missing or of another shape "
            f"({', '.join(missing[:3])}, ...). Fetch it again. `--model tiny` needs no download."
        )
    normalisation = _read_normalisation(checkpoint)
    return Blip2(
        network.to(device).eval(),
        tokenizer,
        family=checkpoint.family,
        mean=normalisation.mean,
        std=normalisation.std,
        qformer_tokenizer=qformer_tokenizer,
    )


def choose_device(name: str) -> torch.device:
    """Resolve `auto` to the GPU if there is one. Raises UsageError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: torch {torch.__version__} can use {torch.cuda.device_count()} GPUs here. "
            "Leave --device out, or use --device cpu."
        )
    return device


def choose_dtype(name: str, device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """Resolve `auto`; float16 is refused for T5, whose activations overflow it."""
    if name == "float16" and checkpoint.text_type == "t5":
        raise UsageError("--dtype float16: Flan-T5 overflows in it. Use bfloat16 or float32.")
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type != "cuda":
        return torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32 if checkpoint.text_type == "t5" else torch.float16


def _read_normalisation(checkpoint: Checkpoint) -> Normalisation:
    """Read the image processor's settings; what this package's decoder does not do is refused, not ignored."""
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


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep its bars and notes off the terminal while it loads; what matters is raised as ModelError."""
    log = transformers.utils.logging
    level, had_bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if had_bar:
            log.enable_progress_bar()
