"""A checkpoint -> a model on its device, ready to generate."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from blip2cap.errors import UsageError
from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2 import quantize
from blip2cap.models.blip2.attention import choose_attention
from blip2cap.models.blip2.decoders import fuse
from blip2cap.models.blip2.instructblip import InstructBlip
from blip2cap.models.blip2.model import Blip2
from blip2cap.models.blip2.normalisation import read_normalisation
from blip2cap.models.blip2.packed_linear import pack
from blip2cap.models.blip2.random_weights import build, network_class, stand_in_tokenizer
from blip2cap.models.device import choose_device, choose_dtype
from blip2cap.models.loading import gpu_memory_errors, has_tokenizer, library_errors, read_network, read_tokenizer
from blip2cap.options import ModelOptions


def load(checkpoint: Checkpoint, options: ModelOptions) -> Blip2:
    """Load the weights from safetensors, and the tokenizer. Raises ModelError if anything is missing."""
    device = choose_device(options.device)
    if options.device_map is not None and device.type != "cuda":
        raise UsageError(f"--device-map {options.device_map}: torch {torch.__version__} sees no GPU. Leave it out.")
    dtype = choose_dtype(options.dtype, device, checkpoint)
    quantize.check(options, device)
    normalisation = read_normalisation(checkpoint)
    quantization = quantize.config_while_reading(options.quantize, dtype)
    # With these transformers places the network itself, and nothing else may move it.
    is_placed = options.device_map is not None or quantization is not None
    with gpu_memory_errors(checkpoint):
        with library_errors(checkpoint):
            tokenizer = _tokenizer(checkpoint, "text")
            qformer_tokenizer = _tokenizer(checkpoint, "qformer") if checkpoint.family == "instructblip" else None
            if options.random_weights:
                network = build(checkpoint, dtype, device)
            else:
                network = read_network(
                    network_class(checkpoint),
                    checkpoint,
                    dtype=dtype,
                    device_map=options.device_map or ({"": device} if quantization is not None else None),
                    quantization_config=quantization,
                )
        if options.quantize is None and not is_placed:
            network.to(device)  # before projections are fused: views would be copied one by one, besides the whole
        if options.device_map is None:
            fuse(network)
        if options.quantize is not None:
            quantize.quantize(network, options.quantize, device)
        if device.type == "cpu":
            pack(network)
            _return_freed_memory()
            choose_attention(network)
        if not is_placed:
            network.to(device)
    mean, std = normalisation.mean, normalisation.std
    if qformer_tokenizer is not None:
        return InstructBlip(network, tokenizer, qformer_tokenizer, checkpoint=checkpoint, mean=mean, std=std)
    return Blip2(network, tokenizer, checkpoint=checkpoint, mean=mean, std=std)


def _return_freed_memory() -> None:
    """Return the memory of old weights to the system: glibc would keep it, a third of a quantised opt-2.7b."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _tokenizer(checkpoint: Checkpoint, which: Literal["text", "qformer"]) -> PreTrainedTokenizerBase:
    """Read a tokenizer; a configuration without one gets a stand-in of the same size."""
    folder = checkpoint.folder if which == "text" else checkpoint.folder / "qformer_tokenizer"
    if checkpoint.commit == "random" and not has_tokenizer(folder):
        return stand_in_tokenizer(checkpoint.config, which=which)
    return read_tokenizer(folder)
