"""Quantises weights: all kinds save memory; on a CPU, `int8-dynamic` saves time as well.

`int8` and `nf4` come from bitsandbytes and are applied while a checkpoint is read; the others are applied to a loaded
network. Not covered: checkpoints that were saved quantised.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from blip2cap.errors import ModelError, UsageError
from blip2cap.models.blip2.gpu_linear import FP8_UNIT, Fp8Linear, GpuInt8Linear
from blip2cap.models.blip2.int8_linear import Int8Linear, cpu_can_int8
from blip2cap.models.blip2.linear_layers import replace_linears
from blip2cap.options import ModelOptions

NEVER = (
    *("qformer", "language_projection", "lm_head", "wo"),
    *("vision_projection", "text_projection", "itm_head"),  # of image-text matching models
)
"""Layers that are not quantised: small, or too sensitive. The input of Flan-T5's `wo` overflows float16; transformers
keeps it in full precision too.

Embeddings, norms and the patch embedding are not Linear layers, and never change.
"""
_WHILE_READING = ("int8", "nf4")
_FP8_CAPABILITY = (8, 9)
"""Capability of the first GPUs with fp8: Ada and Hopper."""


def check(options: ModelOptions, device: torch.device) -> None:
    """Raise UsageError if `options.quantize` cannot work on this device, ModelError if a package is missing."""
    kind = options.quantize
    if kind is None:
        return
    if device.type == "cpu":
        if kind != "int8-dynamic":
            raise UsageError(f"--quantize {kind}: needs a GPU. On a CPU there is --quantize int8-dynamic.")
        if not cpu_can_int8():
            raise UsageError(f"--quantize {kind}: on a CPU it needs an x86 one. Leave it out.")
    if kind == "fp8" and torch.cuda.get_device_capability(device) < _FP8_CAPABILITY:
        raise UsageError(
            f"--quantize fp8: {torch.cuda.get_device_name(device)} cannot compute in it. Use --quantize int8-dynamic."
        )
    if options.random_weights and kind in _WHILE_READING:
        raise UsageError(
            f"--quantize {kind} and random weights exclude each other: it is made while a checkpoint is read. "
            "Use --quantize int8-dynamic or fp8."
        )
    if kind in _WHILE_READING and find_spec("bitsandbytes") is None:
        raise ModelError(f'--quantize {kind}: bitsandbytes is not installed. Run: pip install "blip2cap[quant]"')


def config_while_reading(kind: str | None, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return the quantization_config for `from_pretrained`; None if the network is quantised afterwards or not at all.

    Our skip list replaces transformers' own, which contains lm_head, so NEVER contains it too.
    """
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(NEVER))
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=list(NEVER),
        )
    return None


def quantize(network: nn.Module, kind: str, device: torch.device) -> int:
    """Quantise a loaded network in place, layer by layer on `device`; return the number of quantised layers.

    Other layers stay on their device. `int8` and `nf4` are applied by `config_while_reading`, not here.
    """
    makers = {"int8-dynamic": GpuInt8Linear if device.type == "cuda" else Int8Linear, "fp8": _make_fp8}
    make: Any = makers.get(kind)
    return 0 if make is None else replace_linears(network, lambda linear: make(linear.to(device)), never=NEVER)


def _make_fp8(linear: nn.Linear) -> Fp8Linear | None:
    fits = linear.in_features % FP8_UNIT == 0 and linear.out_features % FP8_UNIT == 0
    return Fp8Linear(linear) if fits else None
