"""A checked folder -> a model on its device, ready to generate."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    InstructBlipForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from blip2cap.errors import ModelError, UsageError
from blip2cap.models.blip2 import quantize
from blip2cap.models.blip2.attention import choose_attention
from blip2cap.models.blip2.cpu import is_fast_at_bfloat16
from blip2cap.models.blip2.decoders import fuse
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.blip2.normalisation import read_normalisation
from blip2cap.models.blip2.packed import pack
from blip2cap.models.blip2.random_weights import build, stand_in_tokenizer
from blip2cap.models.checkpoint import Checkpoint
from blip2cap.options import ModelOptions

_CLASSES = {"blip-2": Blip2ForConditionalGeneration, "instructblip": InstructBlipForConditionalGeneration}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def load(checkpoint: Checkpoint, options: ModelOptions) -> Blip2:
    """Load the weights from safetensors, and the tokenizer; no network, no code from the folder.

    Raises ModelError if anything is missing, so that no weight is ever left at random.
    """
    device = choose_device(options.device)
    if options.device_map is not None and device.type != "cuda":
        raise UsageError(f"--device-map {options.device_map}: torch {torch.__version__} sees no GPU. Leave it out.")
    dtype = choose_dtype(options.dtype, device, checkpoint)
    quantize.check(options, device)
    normalisation = read_normalisation(checkpoint)
    with _memory_errors(checkpoint):
        with _library_errors(checkpoint), _quiet_transformers():
            tokenizer = _tokenizer(checkpoint, "text")
            qformer_tokenizer = _tokenizer(checkpoint, "qformer") if checkpoint.family == "instructblip" else None
            if options.random_weights:
                network = build(checkpoint, dtype, device)
            else:
                network = _read_network(checkpoint, options, device, dtype)
        if options.quantize is None and not _is_placed(options):
            network.to(device)  # before projections are fused: views would be copied one by one, beside the whole
        if options.device_map is None:
            fuse(network)
        if options.quantize is not None:
            quantize.quantize(network, options.quantize, device)
        if device.type == "cpu":
            pack(network)
            _return_freed_memory()
            choose_attention(network)
        if not _is_placed(options):
            network.to(device)
    model = Blip2(
        network,
        tokenizer,
        family=checkpoint.family,
        mean=normalisation.mean,
        std=normalisation.std,
        qformer_tokenizer=qformer_tokenizer,
    )
    model.checkpoint = checkpoint
    return model


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
        return torch.bfloat16 if is_fast_at_bfloat16() else torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32 if checkpoint.text_type == "t5" else torch.float16


def _read_network(checkpoint: Checkpoint, options: ModelOptions, device: torch.device, dtype: torch.dtype) -> Any:
    """Read a network: into main memory, or, where the library has to place it itself, onto its device."""
    quantization = quantize.config_while_reading(options.quantize, dtype)
    place = {"": device} if quantization is not None else None
    network, info = _CLASSES[checkpoint.config["model_type"]].from_pretrained(
        checkpoint.folder,
        dtype=dtype,
        device_map=options.device_map or place,
        quantization_config=quantization,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    missing = sorted(info["missing_keys"]) + [str(key[0]) for key in info["mismatched_keys"]]
    if missing:
        raise ModelError(
            f"--model {checkpoint.name}: {len(missing)} weights are missing or of another shape "
            f"({', '.join(missing[:3])}, ...). Fetch it again. `--model tiny` needs no download."
        )
    return network.eval()


def _is_placed(options: ModelOptions) -> bool:
    """Whether the library places the network itself, and nobody else may."""
    return options.device_map is not None or quantize.config_while_reading(options.quantize, torch.float32) is not None


def _return_freed_memory() -> None:
    """Give the system what old weights took: glibc would keep it for later, a third of a quantised opt-2.7b."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _tokenizer(checkpoint: Checkpoint, which: Literal["text", "qformer"]) -> PreTrainedTokenizerBase:
    """Read a tokenizer; a configuration that came without one gets one that only has its size."""
    folder = checkpoint.folder if which == "text" else checkpoint.folder / "qformer_tokenizer"
    if checkpoint.commit == "random" and not _has_tokenizer(folder):
        return stand_in_tokenizer(checkpoint.config, which=which)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


@contextmanager
def _memory_errors(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn a GPU without room for the weights into ModelError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"--model {checkpoint.name}: does not fit the GPU. Try --quantize int8 or nf4, or --device-map auto to use "
            "all GPUs."
        ) from error


@contextmanager
def _library_errors(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what the libraries raise for a folder that they cannot read into ModelError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ModelError(
            f"--model {checkpoint.name}: cannot be loaded: {first_line} `--model tiny` needs no download."
        ) from error


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
