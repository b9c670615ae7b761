"""Adapters as peft saves them: a folder with low-rank changes (LoRA) to the weights of another model.

Not covered: other kinds of adapters, and adapters with weights of their own.
"""

from __future__ import annotations

from pathlib import Path

from blip2cap.errors import ModelError
from blip2cap.models.base import HINT, Adapter, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SPECIAL = (
    *("modules_to_save", "alpha_pattern", "rank_pattern", "fan_in_fan_out", "layer_replication", "lora_bias"),
    *("trainable_token_indices", "target_parameters", "megatron_config", "alora_invocation_tokens"),
)
"""Settings of peft that change what an adapter computes, besides those that begin with `use_`."""


def is_adapter(folder: Path) -> bool:
    """Return True for a folder with an adapter, and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def read_adapter(name: str, folder: Path) -> Adapter:
    """Read the settings of the adapter of a folder, `name` for users. Raises ModelError for one of another kind."""
    config = read_json(name, folder / CONFIG)
    special = [key for key, value in config.items() if value and (key in _SPECIAL or key.startswith("use_"))]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or special:
        found = ", ".join([str(config.get("peft_type")), *special])
        raise ModelError(
            f"--model {name}: an adapter of another kind ({found}). Expected plain LoRA: merge it into its model with "
            f"peft first. {HINT}"
        )
    base, rank, alpha = (config.get(key) for key in ("base_model_name_or_path", "r", "lora_alpha"))
    if not isinstance(base, str) or not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise ModelError(
            f"--model {name}: {CONFIG} cannot be read: expected base_model_name_or_path, r and lora_alpha. {HINT}"
        )
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"--model {name}: an adapter without weights. Expected {WEIGHTS} in {folder}. {HINT}")
    return Adapter(folder=folder, base=base, revision=config.get("revision"), scale=alpha / rank)
