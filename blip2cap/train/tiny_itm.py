"""The tiny matching model: a true `Blip2ForImageTextRetrieval`, from its config to weights ready for training."""

from __future__ import annotations

import torch
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
)

from blip2cap.train.wordpiece import MAX_TOKENS

_NUM_LAYERS = 4
_INIT_STD = 0.02


def itm_config(captioner: Blip2Config, tokenizer: BertTokenizer) -> Blip2Config:
    """Return the config: vision encoder and queries of the captioner, a Q-Former that also reads texts."""
    width = captioner.qformer_config.hidden_size
    vision = captioner.vision_config.to_diff_dict()
    vision.pop("dtype", None)  # that of the weights as loaded, not as stored
    qformer = Blip2QFormerConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=_NUM_LAYERS,
        num_attention_heads=4,
        cross_attention_frequency=2,
        encoder_hidden_size=captioner.vision_config.hidden_size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        use_qformer_text_input=True,
    )
    return Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        num_query_tokens=captioner.num_query_tokens,
        image_text_hidden_size=256,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )


def new_model(captioner: Blip2ForConditionalGeneration, config: Blip2Config, seed: int) -> Blip2ForImageTextRetrieval:
    """Return the model in float32 with the captioner's vision encoder (frozen), queries and Q-Former layers.

    BLIP-2 starts its Q-Former from BERT; here the captioner's layers take that part. Layers for texts, which the
    captioner lacks, begin as copies of those for queries. The rest is random; equal seeds give equal weights.
    """
    torch.manual_seed(seed)
    model = Blip2ForImageTextRetrieval(config).float()
    with torch.no_grad():
        model.query_tokens.copy_(captioner.query_tokens)
        model.vision_model.load_state_dict(captioner.vision_model.state_dict())
        model.qformer.layernorm.load_state_dict(captioner.qformer.layernorm.state_dict())
        for layer, source in zip(model.qformer.encoder.layer, captioner.qformer.encoder.layer, strict=False):
            layer.load_state_dict(source.state_dict(), strict=False)
            layer.intermediate.load_state_dict(source.intermediate_query.state_dict())
            layer.output.load_state_dict(source.output_query.state_dict())
    model.vision_model.requires_grad_(False)
    return model
