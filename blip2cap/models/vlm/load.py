"""A checkpoint of a vision-language model -> a model on its device, ready to generate."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from blip2cap.errors import ModelError, UsageError
from blip2cap.models.base import HINT, Checkpoint
from blip2cap.models.blip2 import quantize
from blip2cap.models.blip2.sampling import end_ids
from blip2cap.models.device import choose_device, choose_dtype
from blip2cap.models.loading import gpu_memory_errors, library_errors, read_network
from blip2cap.models.vlm.families import VLM_FAMILIES
from blip2cap.models.vlm.model import Vlm
from blip2cap.models.vlm.prompts import Prompter
from blip2cap.options import MAX_PIXELS, ModelOptions

_WHILE_READING = ("int8", "nf4")


def load(checkpoint: Checkpoint, options: ModelOptions) -> Vlm:
    """Load the processor, and the weights from safetensors. Raises ModelError if anything is missing."""
    family = VLM_FAMILIES[checkpoint.family]
    if family.name not in CONFIG_MAPPING:
        raise ModelError(
            f"--model {checkpoint.name}: transformers {transformers.__version__} has no {family.name}. Update it: "
            f"pip install -U transformers. {HINT}"
        )
    device = choose_device(options.device)
    if options.device_map is not None and device.type != "cuda":
        raise UsageError(f"--device-map {options.device_map}: torch {torch.__version__} sees no GPU. Leave it out.")
    dtype = choose_dtype(options.dtype, device, checkpoint)
    _check_quantize(options, device)
    quantization = quantize.config_while_reading(options.quantize, dtype)
    with gpu_memory_errors(checkpoint):
        with library_errors(checkpoint):
            processor = AutoProcessor.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
        if not isinstance(processor, ProcessorMixin):  # of a class that transformers does not know, it reads a part
            raise ModelError(
                f"--model {checkpoint.name}: no processor of images and texts, but a {type(processor).__name__}. "
                f"Expected the processor of {family.name}. {HINT}"
            )
        prompter = Prompter(processor, family, checkpoint)
        with library_errors(checkpoint):
            if options.random_weights:
                network = build(checkpoint, dtype, device)
            else:
                network = read_network(
                    AutoModelForImageTextToText,
                    checkpoint,
                    dtype=dtype,
                    device_map=options.device_map or ({"": device} if quantization is not None else None),
                    quantization_config=quantization,
                )
        if options.device_map is None and quantization is None:
            network.to(device)
    agree_on_ends(network, processor.tokenizer, random=options.random_weights)
    model = Vlm(network, prompter, checkpoint=checkpoint, dtype=dtype, max_pixels=options.max_pixels or MAX_PIXELS)
    model.quantize = options.quantize
    return model


def _check_quantize(options: ModelOptions, device: torch.device) -> None:
    """Raise UsageError for a kind of quantisation that these models do not have here."""
    kind = options.quantize
    if kind is not None and kind not in _WHILE_READING:
        raise UsageError(f"--quantize {kind}: for BLIP-2 only. For this model use --quantize int8 or nf4, on a GPU.")
    if kind is not None and device.type == "cpu":
        raise UsageError(f"--quantize {kind}: needs a GPU. Leave it out.")
    quantize.check(options, device)


def build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Any:
    """Build the network with random weights, always the same; its texts never end by themselves."""
    config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        network = AutoModelForImageTextToText.from_config(config, dtype=dtype, trust_remote_code=False)
    return network.eval()


def agree_on_ends(network: Any, tokenizer: Any, *, random: bool) -> None:
    """End a text at any end that generation_config.json or the tokenizer names; without ends for random weights."""
    config = network.generation_config
    config.cache_implementation = None  # a cache of our own may be passed
    ends = [] if random else sorted({*end_ids(config), *({tokenizer.eos_token_id} - {None})})
    config.eos_token_id = ends or None
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else max(ends, default=0)
