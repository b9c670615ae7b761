"""A checkpoint -> an image-text matching model on its device."""

from __future__ import annotations

from transformers import Blip2ForImageTextRetrieval

from blip2cap.errors import ModelError, UsageError
from blip2cap.models.base import HINT, Checkpoint
from blip2cap.models.blip2 import quantize
from blip2cap.models.blip2.attention import choose_attention
from blip2cap.models.blip2.linear_layers import pack
from blip2cap.models.blip2.load import read_normalisation, return_freed_memory, tokenizer_of
from blip2cap.models.blip2.random_weights import build
from blip2cap.models.device import choose_device, choose_dtype
from blip2cap.models.loading import gpu_memory_errors, library_errors, read_network
from blip2cap.models.matching.model import Matcher
from blip2cap.options import ModelOptions

_QUANTIZE = ("int8-dynamic", "fp8")


def load(checkpoint: Checkpoint, options: ModelOptions) -> Matcher:
    """Load the weights from safetensors, and the tokenizer. Raises ModelError if anything is missing.

    Raises UsageError for options that such a model does not have.
    """
    if options.device_map is not None:
        raise UsageError(f"--device-map {options.device_map}: an image-text matching model fits one GPU. Leave it out.")
    if options.quantize not in (None, *_QUANTIZE):
        raise UsageError(
            f"--quantize {options.quantize}: not for image-text matching models. Use {' or '.join(_QUANTIZE)}."
        )
    check_reads_text(checkpoint)
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device, checkpoint)
    quantize.check(options, device)
    normalisation = read_normalisation(checkpoint)
    with gpu_memory_errors(checkpoint):
        with library_errors(checkpoint):
            tokenizer = tokenizer_of(checkpoint, "qformer", checkpoint.folder)
            if options.random_weights:
                network = build(checkpoint, dtype, device)
            else:
                network = read_network(Blip2ForImageTextRetrieval, checkpoint, dtype=dtype)
        if options.quantize is None:
            network.to(device)
        else:
            quantize.quantize(network, options.quantize, device)
        if device.type == "cpu":
            pack(network)
            return_freed_memory()
            choose_attention(network)
        network.to(device)
    model = Matcher(network, tokenizer, checkpoint=checkpoint, mean=normalisation.mean, std=normalisation.std)
    model.quantize = options.quantize
    return model


def check_reads_text(checkpoint: Checkpoint) -> None:
    """Raise ModelError for a Q-Former that reads no text."""
    if not (checkpoint.config.get("qformer_config") or {}).get("use_qformer_text_input"):
        raise ModelError(
            f"--model {checkpoint.name}: its Q-Former reads no text (use_qformer_text_input in config.json). Expected "
            f"an image-text matching model like Salesforce/blip2-itm-vit-g. {HINT}"
        )
