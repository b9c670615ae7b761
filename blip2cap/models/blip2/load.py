"""A checkpoint -> a model on its device, ready to generate."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from blip2cap.errors import ModelError, UsageError
from blip2cap.models.base import HINT, Checkpoint, read_json, tokenizer_files
from blip2cap.models.blip2 import quantize
from blip2cap.models.blip2.attention import choose_attention
from blip2cap.models.blip2.decoders import fuse
from blip2cap.models.blip2.instructblip import InstructBlip
from blip2cap.models.blip2.linear_layers import pack
from blip2cap.models.blip2.model import NETWORK_CLASSES, Blip2
from blip2cap.models.blip2.random_weights import build, stand_in_tokenizer
from blip2cap.models.blip2.sampling import end_ids
from blip2cap.models.device import choose_device, choose_dtype
from blip2cap.models.loading import gpu_memory_errors, library_errors, read_network, read_tokenizer
from blip2cap.options import ModelOptions

_BICUBIC = 3
_PROCESSOR_SETTINGS = (
    *("image_mean", "image_std", "size", "resample", "rescale_factor"),
    *("do_resize", "do_rescale", "do_normalize", "do_center_crop"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """Input of the vision encoder: (pixels / 255 - mean) / std for each channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_normalisation(checkpoint: Checkpoint) -> Normalisation:
    """Read the image processor's settings. Raises ModelError for settings that this package does not follow."""
    settings: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = checkpoint.folder / name
        if path.is_file():
            content = read_json(checkpoint.name, path)
            settings |= content.get("image_processor") or {}
            settings |= {key: content[key] for key in _PROCESSOR_SETTINGS if key in content}
    side = checkpoint.image_size
    differs = {
        "resample": settings.get("resample", _BICUBIC) != _BICUBIC,
        "size": settings.get("size", side) not in (side, {"height": side, "width": side}),
        "rescale_factor": abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6,
        "do_center_crop": bool(settings.get("do_center_crop")),
        **{name: settings.get(name) is False for name in ("do_resize", "do_normalize", "do_rescale")},
    }
    for name in (name for name in differs if differs[name]):
        raise ModelError(
            f"--model {checkpoint.name}: its image processor has {name} = {settings[name]}. Expected bicubic "
            f"resize to {side} x {side}, divided by 255 and normalised."
        )
    mean, std = settings.get("image_mean", OPENAI_CLIP_MEAN), settings.get("image_std", OPENAI_CLIP_STD)
    return Normalisation(mean=tuple(mean), std=tuple(std))


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
            tokenizer = tokenizer_of(checkpoint, "text", checkpoint.folder)
            qformer_tokenizer = None
            if checkpoint.family == "instructblip":
                qformer_tokenizer = tokenizer_of(checkpoint, "qformer", checkpoint.folder / "qformer_tokenizer")
            if options.random_weights:
                network = build(checkpoint, dtype, device)
            else:
                network = read_network(
                    NETWORK_CLASSES[checkpoint.family],
                    checkpoint,
                    dtype=dtype,
                    device_map=options.device_map or ({"": device} if quantization is not None else None),
                    quantization_config=quantization,
                )
        remark = "" if options.random_weights else agree_on_ends(network, tokenizer)
        if checkpoint.text_type == "t5":
            check_embeddings(checkpoint, network.language_model)
        if options.quantize is None and not is_placed:
            network.to(device)  # before projections are fused: views would be copied one by one, besides the whole
        if options.device_map is None:
            fuse(network)
        if options.quantize is not None:
            quantize.quantize(network, options.quantize, device)
        if device.type == "cpu":
            pack(network)
            return_freed_memory()
            choose_attention(network)
        if not is_placed:
            network.to(device)
    mean, std = normalisation.mean, normalisation.std
    if qformer_tokenizer is None:
        model = Blip2(network, tokenizer, checkpoint=checkpoint, mean=mean, std=std)
    else:
        model = InstructBlip(network, tokenizer, qformer_tokenizer, checkpoint=checkpoint, mean=mean, std=std)
    model.quantize, model.remark = options.quantize, remark
    return model


def agree_on_ends(network: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """End a text at any end that the tokenizer, generation_config.json or the configuration names.

    Returns what to tell the user about a special token that does not end texts by the tokenizer: on the hub, Vicuna's
    configuration has the ids of another tokenizer. The line break that ends texts of OPT is no special token.
    """
    config = network.language_model.generation_config
    named = {*end_ids(network.generation_config), *end_ids(config)}
    ends = {*named, *({tokenizer.eos_token_id} - {None})}
    config.eos_token_id = sorted(ends)
    if config.pad_token_id is None or not 0 <= config.pad_token_id < network.config.text_config.vocab_size:
        config.pad_token_id = max(ends, default=0)  # generate feeds it to rows that have ended
    odd = [token for token in sorted(named - {tokenizer.eos_token_id}) if not tokenizer.decode([token], True)]
    if not odd:
        return ""
    words = ", ".join(map(str, tokenizer.convert_ids_to_tokens(odd)))
    return f"its settings end texts with {words}, its tokenizer with {tokenizer.eos_token}; both end texts"


def check_embeddings(checkpoint: Checkpoint, language_model: Any) -> None:
    """Raise ModelError if T5's embeddings differ, as transformers before 5.23 reads some files (its issue 48154)."""
    stacks = (language_model.encoder, language_model.decoder)
    first, *others = (language_model.shared.weight, *(stack.embed_tokens.weight for stack in stacks))
    if not all(other is first or torch.equal(other.to(first.device), first) for other in others):
        raise ModelError(
            f"--model {checkpoint.name}: transformers {transformers.__version__} reads the embeddings of this T5 "
            f"wrongly, as its files have no shared.weight. Update it: pip install 'transformers>=5.23'. {HINT}"
        )


def return_freed_memory() -> None:
    """Return the memory of old weights to the system: glibc would keep it, a third of a quantised opt-2.7b."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def tokenizer_of(checkpoint: Checkpoint, which: Literal["text", "qformer"], folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of the language model or of the Q-Former from a folder.

    A configuration without one gets a stand-in of the same size. Raises ModelError for the tokenizer of another model.
    """
    if checkpoint.commit == "random" and not tokenizer_files(folder):
        return stand_in_tokenizer(checkpoint.config, which=which)
    # As transformers reads the tokenizers of these models by their names on the hub; of a folder it sees no name.
    as_saved = checkpoint.family == "matching" or (which == "text" and checkpoint.text_type in ("opt", "t5"))
    tokenizer = read_tokenizer(folder, as_saved=as_saved)
    num_words = (checkpoint.config.get(f"{which}_config") or {}).get("vocab_size", 0)
    if len(tokenizer) < num_words // 2:
        raise ModelError(
            f"--model {checkpoint.name}: its tokenizer has {len(tokenizer)} tokens, the model {num_words}. Expected "
            f"the tokenizer of this model. {HINT}"
        )
    return tokenizer
