"""The tokenizers of a model without its weights: enough to know how long texts are."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2.load import read_normalisation, tokenizer_of
from blip2cap.models.checkpoint import find
from blip2cap.models.loading import library_errors
from blip2cap.options import ModelOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerBase:
    """The tokenizers of a model, as collators need them: a `TextBase` without weights."""

    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    qformer_tokenizer: PreTrainedTokenizerBase | None
    image_token_id: int | None
    num_queries: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_tokenizers(options: ModelOptions) -> TokenizerBase:
    """Read the tokenizers of a model. Raises ModelError."""
    checkpoint = find(options)
    normalisation = read_normalisation(checkpoint)
    matching, instructed = checkpoint.family == "matching", checkpoint.family == "instructblip"
    with library_errors(checkpoint):
        tokenizer = tokenizer_of(checkpoint, "qformer" if matching else "text", checkpoint.folder)
        qformer_tokenizer = None
        if instructed:
            qformer_tokenizer = tokenizer_of(checkpoint, "qformer", checkpoint.folder / "qformer_tokenizer")
    image_token_id = checkpoint.config.get("image_token_index")
    if image_token_id is None and not matching:  # in old snapshots; its id does not change a length
        image_token_id = tokenizer.pad_token_id or 0
    return TokenizerBase(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        qformer_tokenizer=qformer_tokenizer,
        image_token_id=image_token_id,
        num_queries=int(checkpoint.config["num_query_tokens"]),
        mean=normalisation.mean,
        std=normalisation.std,
    )
