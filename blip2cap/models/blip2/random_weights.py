"""A network of any size with random weights and a tokenizer to go with it: what speed and memory need, and no more.

Covered: the shapes, dtypes, ties and buffers that loading the real checkpoint gives. Not covered: meaning; what such a
network says about an image is noise, and it hardly ever says that it is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from blip2cap.models.checkpoint import Checkpoint

_CLASSES = {
    "blip-2": (Blip2Config, Blip2ForConditionalGeneration),
    "instructblip": (InstructBlipConfig, InstructBlipForConditionalGeneration),
}
_STD = 0.02
_TAPE_LENGTH = 1_000_003
"""A prime, so that no two rows of a matrix and no two layers read the same stretch of the tape."""


def build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Any:
    """Build the network of `checkpoint.config` in eval mode, always with the same weights, in the memory they take.

    Weights are N(0, 0.02), norms 1, biases 0; texts never end by themselves. In float16 what transformers loads in
    float32 is float32 here too.
    """
    network = build_empty(checkpoint)
    kept = set(network._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()
    head = network.get_output_embeddings()
    text = checkpoint.config.get("text_config") or {}
    # Flan-T5's class ties what it makes from a config, though its checkpoints have a head of their own; transformers 5
    # writes the second of these in place of the first.
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
    # By chance a text would end at any length; what is measured should not depend on it.
    network.generation_config.eos_token_id = network.language_model.generation_config.eos_token_id = None
    return network.to(device).eval()


def build_empty(checkpoint: Checkpoint) -> Any:
    """Build the network without memory for its parameters: they are on the meta device; buffers are real."""
    config_class, network_class = _CLASSES[checkpoint.config["model_type"]]
    with init_empty_weights(include_buffers=False):
        network = network_class(config_class.from_dict(checkpoint.config))
    network.tie_weights()
    return network


class _Tape:
    """Random numbers, read round and round: to draw billions takes minutes, to copy them seconds."""

    def __init__(self, device: torch.device) -> None:
        numbers = torch.randn(_TAPE_LENGTH, generator=torch.Generator().manual_seed(0)) * _STD
        self._numbers = numbers.to(device)
        self._casts: dict[torch.dtype, torch.Tensor] = {}
        self._position = 0

    def read_into(self, values: torch.Tensor) -> None:
        """Fill a new tensor with the numbers that come next."""
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
    """Make a tokenizer with as many ids as the model has; `config` is the content of config.json.

    Id 123 reads "t123", and the other way round; every other word or mark is one and the same id. Texts begin and end
    as the real ones do: OPT and Llama with the begin token first, T5 with the end token last, the Q-Former with both.
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
    """The ids of a tokenizer that mean something."""

    size: int
    begin: int
    end: int
    pad: int
    image: int | None = None
    begins: bool
    """Texts have the begin token in front."""
    ends: bool
    """Texts have the end token behind."""


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
        pad=end if pad is None or not 0 <= pad < size else pad,  # old snapshots of Vicuna say -1
        image=image,
        begins=not t5,
        ends=t5,
    )


def _qformer_ids(config: dict[str, Any]) -> _Ids:
    """Return those of BERT, or small ones for a small vocabulary."""
    size = int((config.get("qformer_config") or {}).get("vocab_size", 30522))
    begin, end = (101, 102) if size > 110 else (1, 2)
    return _Ids(size=size, begin=begin, end=end, pad=0, begins=True, ends=True)
