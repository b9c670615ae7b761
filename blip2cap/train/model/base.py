"""The model that a training starts from: a checkpoint in float32 in main memory, with its tokenizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from blip2cap.errors import ModelError, UsageError
from blip2cap.models.base import CAPTIONING_MODELS, HINT, MATCHING_MODELS, Checkpoint
from blip2cap.models.blip2.load import agree_on_ends, check_embeddings, read_normalisation, tokenizer_of
from blip2cap.models.blip2.model import NETWORK_CLASSES
from blip2cap.models.blip2.random_weights import build
from blip2cap.models.checkpoint import find
from blip2cap.models.loading import library_errors, read_network
from blip2cap.models.matching.load import check_reads_text
from blip2cap.options import ModelOptions
from blip2cap.train.model.from_stage1 import replace_qformer
from blip2cap.train.model.positions import resize_positions
from blip2cap.train.options.model import TuneOptions

_IMAGE_TOKEN = "<image>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A model ready for training."""

    model: Any
    """Network of transformers, float32, on the CPU."""
    tokenizer: PreTrainedTokenizerBase
    """Tokenizer of the language model; of an image-text matching model that of the Q-Former."""
    qformer_tokenizer: PreTrainedTokenizerBase | None
    """Tokenizer of InstructBLIP's Q-Former; None for others."""
    checkpoint: Checkpoint
    """The checkpoint; its configuration has the image size and the image token of the training."""
    mean: tuple[float, ...]
    """Mean of each channel, for values from 0 to 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel."""
    image_token_id: int | None
    """Id of the placeholder of a query token; None for image-text matching models without one."""

    @property
    def family(self) -> str:
        """Key of the family in `models.registry.FAMILIES`."""
        return self.checkpoint.family

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.checkpoint.image_size

    @property
    def num_queries(self) -> int:
        """Number of query tokens of an image."""
        return int(self.model.config.num_query_tokens)


def load_base(
    options: ModelOptions,
    *,
    stage: str,
    tune: TuneOptions,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
) -> Base:
    """Load the model of `options.name` for one of `options.model.STAGES`; `say` is called before a download.

    `seed` is that of new weights, if there are any. Raises ModelError for a model that cannot be loaded, and UsageError
    for one of another kind than the stage trains.
    """
    tune.check_stage(stage)
    checkpoint = find(options, say=say)
    _check_kind(checkpoint, stage)
    if checkpoint.adapter is not None and tune.no_merge:
        raise UsageError(
            f"--no-merge: {checkpoint.name} is an adapter itself, and the new one would be for the model with it. "
            "Leave --no-merge out: both are merged then."
        )
    normalisation = read_normalisation(checkpoint)
    matching = checkpoint.family == "matching"
    with library_errors(checkpoint):
        tokenizer = tokenizer_of(checkpoint, "qformer" if matching else "text", checkpoint.folder)
        qformer_tokenizer = None
        if checkpoint.family == "instructblip":
            qformer_tokenizer = tokenizer_of(checkpoint, "qformer", checkpoint.folder / "qformer_tokenizer")
        if options.random_weights:
            model = build(checkpoint, torch.float32, torch.device("cpu"))
        else:
            model = read_network(NETWORK_CLASSES[checkpoint.family], checkpoint, dtype=torch.float32)
    image_token_id = model.config.image_token_index
    if not matching:
        agree_on_ends(model, tokenizer)
        image_token_id = _name_image_token(checkpoint, model, tokenizer)
    if checkpoint.text_type == "t5":
        check_embeddings(checkpoint, model.language_model)
    if tune.qformer_from is not None:
        replace_qformer(model, tune.qformer_from, seed=seed)
    if tune.image_size is not None:
        resize_positions(model, tune.image_size)
    vision = {**(checkpoint.config.get("vision_config") or {}), "image_size": model.config.vision_config.image_size}
    config = {**checkpoint.config, "vision_config": vision, "image_token_index": image_token_id}
    return Base(
        model=model,
        tokenizer=tokenizer,
        qformer_tokenizer=qformer_tokenizer,
        checkpoint=dataclasses.replace(checkpoint, config=config),
        mean=normalisation.mean,
        std=normalisation.std,
        image_token_id=image_token_id,
    )


def _check_kind(checkpoint: Checkpoint, stage: str) -> None:
    """Raise UsageError for a captioner in stage 1, or an image-text matching model elsewhere."""
    if (checkpoint.family == "matching") != (stage == "stage1"):
        needed, fitting = ("an image-text matching model", MATCHING_MODELS)
        if stage != "stage1":
            needed, fitting = ("a model with a language model", CAPTIONING_MODELS)
        raise UsageError(
            f"--model {checkpoint.name}: a model of the family {checkpoint.family}. {stage} trains {needed}, such as "
            f"{fitting}."
        )
    if stage == "stage1":
        check_reads_text(checkpoint)
    elif checkpoint.family == "instructblip" and stage == "stage2":
        raise UsageError(
            f"--model {checkpoint.name}: InstructBLIP has no stage 2: it is tuned on instructions. Use `train vqa`."
        )


def _name_image_token(checkpoint: Checkpoint, model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the image token; old snapshots, which name none, get the first free id, as on the hub today."""
    if model.config.image_token_index is None:
        tokenizer.add_tokens([AddedToken(_IMAGE_TOKEN, normalized=False, special=True)], special_tokens=True)
        model.config.image_token_index = tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN)
    image_token_id = int(model.config.image_token_index)
    num_words = model.get_input_embeddings().num_embeddings
    if image_token_id >= num_words:
        raise ModelError(
            f"--model {checkpoint.name}: its image token has the id {image_token_id}, its language model {num_words} "
            f"tokens. Fetch a newer revision of it. {HINT}"
        )
    return image_token_id
