"""The tiny model: a true BLIP-2 of a few million parameters, from its config to weights ready for training."""

from __future__ import annotations

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

IMAGE_SIZE = 112
"""Side of the model's square input in pixels."""
PATCH_SIZE = 14
_INIT_STD = 0.02
"""The defaults of the configs, 1e-10 for the ViT and zeros for the queries, prevent training from scratch."""


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Blip2Config:
    """Return the config of the tiny model: the classes and the structure of blip2-opt-2.7b, all sizes smaller."""
    width = 128
    vision = Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        initializer_range=_INIT_STD,
    )
    qformer = Blip2QFormerConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        cross_attention_frequency=2,
        encoder_hidden_size=width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
    )
    text = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )


def new_model(config: Blip2Config, seed: int) -> Blip2ForConditionalGeneration:
    """Return the model with random float32 weights; equal seeds give equal weights."""
    torch.manual_seed(seed)
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        model.query_tokens.normal_(0.0, _INIT_STD)
    return model
