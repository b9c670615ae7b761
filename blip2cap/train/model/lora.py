"""Low-rank adapters (https://arxiv.org/abs/2106.09685) in a language model, by peft; merged, or saved on their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from blip2cap.errors import ModelError, UsageError
from blip2cap.models.adapter import WEIGHTS
from blip2cap.models.base import Checkpoint
from blip2cap.train.options.model import TuneOptions

_TARGETS = {"opt": ("q_proj", "v_proj"), "llama": ("q_proj", "v_proj"), "t5": ("q", "v")}
"""Query and value projections of the attention of language models, as in the paper on LoRA."""
_ADAPTER = "default"
"""Name that peft gives to the adapter."""


def add_adapters(language_model: nn.Module, tune: TuneOptions, *, checkpoint: Checkpoint, seed: int) -> None:
    """Add an adapter to each target, in place. Adapters start as zero: no output changes.

    Raises ModelError without peft, and UsageError for a name that no linear layer has.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError("--train lora: peft is not installed. Run: pip install 'blip2cap[train]'.") from error
    targets = tune.lora_targets or _TARGETS[checkpoint.text_type]
    # lm_head is not offered: its weight may be that of the embeddings.
    layers = {
        name.rpartition(".")[2] for name, module in language_model.named_modules() if isinstance(module, nn.Linear)
    } - {"lm_head"}
    for target in targets:
        if target not in layers:
            raise UsageError(
                f"--lora-targets {target}: the language model of {checkpoint.name} has no such layers. Expected one or "
                f"more of {', '.join(sorted(layers))}."
            )
    config = LoraConfig(
        r=tune.lora_rank, lora_alpha=tune.lora_alpha, lora_dropout=tune.lora_dropout, target_modules=list(targets)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, language_model, adapter_name=_ADAPTER)


def write_adapters(model: Any, folder: Path, *, checkpoint: Checkpoint) -> None:
    """Write the adapters as peft does, for the class of the whole model, which names its checkpoint."""
    from peft import LoraConfig

    injected = model.language_model.peft_config[_ADAPTER]
    # A commit, or a fingerprint of a folder, whose name would not be that of a model on the hub.
    is_on_hub = ":" not in checkpoint.commit
    LoraConfig(
        base_model_name_or_path=checkpoint.name if is_on_hub else str(checkpoint.folder.resolve()),
        revision=checkpoint.commit if is_on_hub else None,
        r=injected.r,
        lora_alpha=injected.lora_alpha,
        lora_dropout=injected.lora_dropout,
        # Not the names alone, which other parts of the model have too.
        target_modules=rf"language_model\..*\.({'|'.join(sorted(injected.target_modules))})",
        inference_mode=True,
    ).save_pretrained(str(folder))
    tensors = {
        f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}": value.cpu().contiguous()
        for name, value in model.state_dict().items()
        if is_adapter(name)
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def is_adapter(name: str) -> bool:
    """Return True for the name of a parameter of an adapter."""
    return ".lora_" in name


def merged_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state of a model with adapters added to the weights, under the names that it has without adapters.

    The model does not change, nor do the tensors of `state`.
    """
    state = {name.replace(".base_layer.", "."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not is_adapter(name)}
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            layer: Any = module
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = weight + layer.get_delta_weight(_ADAPTER).to(weight.device)
    return state
