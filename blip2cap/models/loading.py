"""Loads networks and tokenizers with transformers: only safetensors, no downloads, no code from folders."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from blip2cap.errors import ModelError, UsageError
from blip2cap.models.adapter import WEIGHTS
from blip2cap.models.base import HINT, Adapter, Checkpoint

_PEFT_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
"""Parts of the names that peft gives to the tensors of an adapter."""


def read_network(network_class: Any, checkpoint: Checkpoint, **settings: Any) -> Any:
    """Read a network into main memory, or onto its devices if `settings` have a device_map.

    `settings` are those of `from_pretrained`. Raises ModelError if a weight is missing, so that none is left at random,
    and UsageError for an adapter of quantised weights.
    """
    if checkpoint.adapter is not None and settings.get("quantization_config") is not None:
        raise UsageError(
            f"--model {checkpoint.name}: an adapter, which cannot be added to weights of 4 or 8 bits. Use --quantize "
            "int8-dynamic or fp8, or merge it into its model first."
        )
    network, info = network_class.from_pretrained(
        checkpoint.folder,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        **settings,
    )
    missing = sorted(info["missing_keys"]) + [str(key[0]) for key in info["mismatched_keys"]]
    if missing:
        raise ModelError(
            f"--model {checkpoint.name}: {len(missing)} weights are missing or of another shape "
            f"({', '.join(missing[:3])}, ...). Fetch it again. {HINT}"
        )
    if checkpoint.adapter is not None:
        _add_adapter(network, checkpoint.name, checkpoint.adapter)
    return network.eval()


@torch.no_grad()
def _add_adapter(network: Any, name: str, adapter: Adapter) -> None:
    """Add an adapter to the weights of a network, in place. Raises ModelError if a part of it has no place there."""
    tensors = load_file(adapter.folder / WEIGHTS)
    parameters = dict(network.named_parameters())  # of weights that are shared, the first name only
    for key in sorted(key for key in tensors if key.endswith(_DOWN)):
        stem = key.removesuffix(_DOWN)
        weight = parameters.get(f"{stem.removeprefix(_PEFT_PREFIX)}.weight")
        if weight is None or stem + _UP not in tensors:
            continue
        change = tensors.pop(stem + _UP).float() @ tensors.pop(key).float() * adapter.scale
        weight.copy_(weight.float() + change.to(weight.device))
    if tensors:
        raise ModelError(
            f"--model {name}: an adapter that does not fit its model {adapter.base}: {len(tensors)} tensors have no "
            f"place there, such as {min(tensors)}. Merge it into its model with peft first. {HINT}"
        )


def read_tokenizer(folder: Path, *, as_saved: bool) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a folder; `as_saved`: as tokenizer.json has it, whatever class is named beside it."""
    as_saved = as_saved and (folder / "tokenizer.json").is_file()
    reader = PreTrainedTokenizerFast if as_saved else AutoTokenizer
    return reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def gpu_memory_errors(checkpoint: Checkpoint) -> Iterator[None]:
    """Raise ModelError if the weights do not fit the GPU's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"--model {checkpoint.name}: does not fit the GPU. Try --quantize int8 or nf4, or --device-map auto to use "
            "all GPUs."
        ) from error


@contextmanager
def library_errors(checkpoint: Checkpoint) -> Iterator[None]:
    """Raise ModelError for the errors of the libraries with files that they cannot read; hide their other messages."""
    try:
        with quiet_libraries():
            yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ModelError(f"--model {checkpoint.name}: cannot be loaded: {first_line} {HINT}") from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the messages and progress bars of transformers."""
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
