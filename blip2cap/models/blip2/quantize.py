"""Weights of fewer bits: `int8` and `nf4` to save memory, `int8-dynamic` and `fp8` to save time as well.

`int8` and `nf4` are bitsandbytes' and are made while a checkpoint is read; the other two are made of a loaded network.
Not covered: checkpoints that were quantised before they were saved.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from blip2cap.errors import ModelError, UsageError
from blip2cap.models.blip2.int8 import GpuInt8Linear, Int8Linear, cpu_can_int8
from blip2cap.models.blip2.replace_linears import replace_linears
from blip2cap.options import ModelOptions

NEVER = ("qformer", "language_projection", "lm_head", "wo")
"""Small, or too sensitive. Flan-T5's `wo` is fed with values that overflow float16; transformers keeps it whole too.

Embeddings, norms and the patch embedding are no Linear layers, and are not touched in any case.
"""
_WHILE_READING = ("int8", "nf4")
_PACKAGES = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "fp8": "torchao"}
_FP8_CAPABILITY = (8, 9)
"""The first GPUs with fp8: Ada and Hopper."""


def check(options: ModelOptions, device: torch.device) -> None:
    """Raise UsageError where `options.quantize` cannot work on this device, ModelError where a package is missing."""
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
    package = _PACKAGES.get(kind)
    if package is not None and find_spec(package) is None:
        raise ModelError(f'--quantize {kind}: {package} is not installed. Run: pip install "blip2cap[quant]"')


def config_while_reading(kind: str | None, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return what `from_pretrained` takes as quantization_config; None where the network is quantised afterwards.

    A skip list replaces transformers' own, which would have spared lm_head: NEVER has it too.
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
    """Quantise a loaded network in place, one layer after the other on `device`; return how many layers it were.

    What is left as it was stays where it is. `int8` and `nf4` are left to `config_while_reading`.
    """
    makers = {"int8-dynamic": GpuInt8Linear if device.type == "cuda" else Int8Linear, "fp8": _make_fp8}
    make: Any = makers.get(kind)
    return 0 if make is None else replace_linears(network, lambda linear: make(linear.to(device)), never=NEVER)


def _make_fp8(linear: nn.Linear) -> nn.Linear:
    """Give a bfloat16 Linear an fp8 weight; a row of activations has a scale of its own, and no neighbours."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    # Its settings for the compiler are global, and nothing is compiled here.
    quantize_(linear, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False))
    return linear
