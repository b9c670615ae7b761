"""Small random checkpoints of the real classes, saved as the hub has them, with tokenizer and processor files.

Every token is a separate word, so equal texts mean equal tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

IMAGE_SIZE = 28
WORDS = [f"w{number}" for number in range(60)] + ["a", "photo", "of", "Question", "Answer", "Short", "what", "is", "it"]
KINDS = ("opt", "t5", "instructblip-t5", "instructblip-llama")
MATCHING_KINDS = ("matching", "matching-placeholders")
"""Image-text matching models: in the second, as on the hub today, texts of the processor begin with placeholders."""


def make_checkpoint(folder: Path, kind: str, seed: int = 0) -> Path:
    """Save a random checkpoint of one of KINDS or MATCHING_KINDS in `folder`."""
    torch.manual_seed(seed)
    if kind in MATCHING_KINDS:
        return _make_matching(folder, placeholders=kind == "matching-placeholders")
    tokenizer = make_tokenizer(ends=kind.endswith("t5"))
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = BlipImageProcessorPil(size=size)
    common: dict[str, Any] = {
        "num_query_tokens": 4,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "text_config": _text_config(kind, len(tokenizer)),
    }
    if kind.startswith("instructblip"):
        qformer_tokenizer = make_tokenizer(ends=True)
        config: Any = InstructBlipConfig(
            vision_config=InstructBlipVisionConfig(**_VISION),
            qformer_config=InstructBlipQFormerConfig(**_QFORMER, vocab_size=len(qformer_tokenizer)),
            **common,
        )
        model: Any = InstructBlipForConditionalGeneration(config)
        processor: Any = InstructBlipProcessor(image_processor, tokenizer, qformer_tokenizer, num_query_tokens=4)
    else:
        vision, qformer = Blip2VisionConfig(**_VISION), Blip2QFormerConfig(**_QFORMER, vocab_size=len(tokenizer))
        config = Blip2Config(vision_config=vision, qformer_config=qformer, **common)
        model = Blip2ForConditionalGeneration(config)
        processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=4)
    return _save(folder, model, processor)


def _make_matching(folder: Path, *, placeholders: bool) -> Path:
    tokenizer = make_tokenizer(ends=True, begins=True)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**_VISION),
        qformer_config=Blip2QFormerConfig(**_QFORMER, vocab_size=len(tokenizer), use_qformer_text_input=True),
        num_query_tokens=4,
        image_text_hidden_size=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>") if placeholders else None,
    )
    image_processor = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=4 if placeholders else None)
    return _save(folder, Blip2ForImageTextRetrieval(config), processor)


def _save(folder: Path, model: Any, processor: Any) -> Path:
    """Save a network with random weights, and its processor."""
    with torch.no_grad():
        # Wide weights: every layer matters, and no two logits are near each other.
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 1.0 if "query_tokens" in name else 0.25)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": 7,
}
_QFORMER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "encoder_hidden_size": 32,
    "max_position_embeddings": 64,
}


def _text_config(kind: str, vocab_size: int) -> Any:
    if kind.endswith("t5"):
        return T5Config(
            vocab_size=vocab_size,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
            bos_token_id=1,
            pad_token_id=0,
            eos_token_id=1,
        )
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    if kind == "opt":
        return OPTConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            **ids,
        )
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        **ids,
    )


def make_tokenizer(*, ends: bool, begins: bool = False) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one word per token; `ends`: the end token last, as in T5; else begin token first.

    `begins`: both, as in BERT.
    """
    special = ["<pad>", "</s>", "<s>", "<unk>", "<image>", "?", ":", "."]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    token = "</s>" if ends else "<s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{'<s> ' if begins else ''}$A {token}" if ends else f"{token} $A",
        special_tokens=[(name, vocabulary[name]) for name in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
