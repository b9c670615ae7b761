"""A network of any size with random weights, and a tokenizer for it: enough to measure speed and memory.

Covered: the shapes, dtypes, ties and buffers that loading the real checkpoint gives. Not covered: meaning; the texts of
such a network are noise, and they never end by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2.model import NETWORK_CLASSES

_STD = 0.02
_TAPE_LENGTH = 1_000_003
"""A prime, so that no two rows of a matrix and no two layers read the same section of the tape."""


def build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Any:
    """Build the network of `checkpoint.config` in eval mode, always with the same weights.

    Weights are N(0, 0.02), norms 1, biases 0; texts never end by themselves. In float16, the modules that transformers
    loads in float32 are float32 here too. No more memory is used than the weights take.
    """
    network = build_empty(checkpoint)
    kept = set(network._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()
    writes = checkpoint.family != "matching"
    head = network.get_output_embeddings() if writes else None
    text = checkpoint.config.get("text_config") or {}
    # Flan-T5's class ties the head to the embedding when built from a config, although its checkpoints have a separate
    # head; transformers 5 writes the second of these settings instead of the first.
    head_is_tied = text.get("tie_word_embeddings", True) and text.get("scale_decoder_outputs", True)
    tape = _Tape(device)
    made: dict[tuple[int, bool], torch.nn.Parameter] = {}
    for name, module in network.named_modules():
        for leaf, empty in list(module.named_parameters(recurse=False)):
            key = (id(empty), module is head and not head_is_tied)
            if key not in made:
                here = torch.float32 if any(part in f"{name}.{leaf}" for part in kept) else dtype
                values = torch.empty(empty.shape, dtype=here, device=device)
                if leaf == "bias":
                    values.zero_()
                elif leaf == "weight" and values.ndim == 1:
                    values.fill_(1)
                else:
                    tape.read_into(values)
                made[key] = torch.nn.Parameter(values, requires_grad=empty.requires_grad)
            setattr(module, leaf, made[key])
    if writes:  # by chance a text would end at any length; measurements should not depend on it
        network.generation_config.eos_token_id = network.language_model.generation_config.eos_token_id = None
    return network.to(device).eval()


def build_empty(checkpoint: Checkpoint) -> Any:
    """Build the network without memory for its parameters: they are on the meta device; buffers are real."""
    cls = NETWORK_CLASSES[checkpoint.family]
    with init_empty_weights(include_buffers=False):
        network = cls(cls.config_class.from_dict(checkpoint.config))
    network.tie_weights()
    return network


class _Tape:
    """Random numbers that are reused in a circle: drawing billions takes minutes, copying them seconds."""

    def __init__(self, device: torch.device) -> None:
        numbers = torch.randn(_TAPE_LENGTH, generator=torch.Generator().manual_seed(0)) * _STD
        self._numbers = numbers.to(device)
        self._casts: dict[torch.dtype, torch.Tensor] = {}
        self._position = 0

    def read_into(self, values: torch.Tensor) -> None:
        """Fill a new tensor with the next numbers."""
        if values.dtype not in self._casts:
            self._casts[values.dtype] = self._numbers.to(values.dtype)
        numbers, flat, at = self._casts[values.dtype], values.view(-1), 0
        while at < len(flat):
            piece = numbers[self._position : self._position + len(flat) - at]
            flat[at : at + len(piece)] = piece
            at += len(piece)
            self._position = (self._position + len(piece)) % len(numbers)


def stand_in_tokenizer(
    config: dict[str, Any], *, which: Literal["text", "qformer"] = "text"
) -> PreTrainedTokenizerFast:
    """Make a tokenizer with the vocabulary size of the model; `config` is the content of config.json.

    Id 123 is the word "t123", and vice versa; all other words and punctuation marks share one id. Texts begin and end
    as with the real tokenizers: OPT and Llama with the begin token first, T5 with the end token last, the Q-Former with
    both.
    """
    ids = _text_ids(config) if which == "text" else _qformer_ids(config)
    special: dict[int, str] = {}
    for index, token in ((ids.end, "</s>"), (ids.begin, "<s>"), (ids.pad, "<pad>"), (ids.image, "<image>")):
        if index is not None:
            special.setdefault(index, token)
    words = {special.get(index, f"t{index}"): index for index in range(ids.size)}
    unknown = next(f"t{index}" for index in range(3, ids.size) if index not in special)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = (special[ids.begin] if ids.begins else "", "$A", special[ids.end] if ids.ends else "")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(single).strip(), special_tokens=[(token, index) for index, token in special.items()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[ids.begin],
        eos_token=special[ids.end],
        pad_token=special[ids.pad],
        additional_special_tokens=["<image>"] if ids.image is not None else [],
        padding_side="right" if ids.ends else "left",
        model_input_names=["input_ids", "attention_mask"],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ids:
    """Vocabulary size and special ids of a tokenizer."""

    size: int
    begin: int
    end: int
    pad: int
    image: int | None = None
    begins: bool
    """Texts begin with the begin token."""
    ends: bool
    """Texts end with the end token."""


def _text_ids(config: dict[str, Any]) -> _Ids:
    text = config.get("text_config") or {}
    t5 = text.get("model_type") == "t5"
    size = int(text.get("vocab_size", 32128 if t5 else 50272))
    end = text.get("eos_token_id", 1 if t5 else 2)
    end = end[0] if isinstance(end, list) else end
    pad, image = text.get("pad_token_id", 0 if t5 else 1), config.get("image_token_index")
    return _Ids(
        size=size,
        begin=text.get("bos_token_id", 1 if t5 else 2),
        end=end,
        pad=end if pad is None or not 0 <= pad < size else pad,  # -1 in old snapshots of Vicuna
        image=image,
        begins=not t5,
        ends=t5,
    )


def _qformer_ids(config: dict[str, Any]) -> _Ids:
    """Return the ids of BERT, or small ids for a small vocabulary."""
    size = int((config.get("qformer_config") or {}).get("vocab_size", 30522))
    begin, end = (101, 102) if size > 110 else (1, 2)
    return _Ids(size=size, begin=begin, end=end, pad=0, begins=True, ends=True)
