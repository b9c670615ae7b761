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
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from blip2cap.errors import ModelError
from blip2cap.models.base import HINT, Checkpoint


def read_network(network_class: Any, checkpoint: Checkpoint, **settings: Any) -> Any:
    """Read a network into main memory, or onto its devices if `settings` have a device_map.

    `settings` are those of `from_pretrained`. Raises ModelError if a weight is missing, so that none is left at random.
    """
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
    return network.eval()


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
