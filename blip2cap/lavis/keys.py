"""Names of the parameters of LAVIS's models, and of the same parameters in the classes of transformers.

Those of LAVIS: lavis/models/blip2_models/*.py and lavis/models/eva_vit.py of github.com/salesforce/LAVIS.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

QUERY_BIAS, VALUE_BIAS, JOINED_BIAS = (f".self_attn.{name}" for name in ("q_bias", "v_bias", "qkv.bias"))
"""LAVIS has a bias for queries and one for values; transformers has one vector: theirs, and 0 for keys between them."""
POSITIONS = "vision_model.embeddings.position_embedding"
LAST_NORM = "vision_model.post_layernorm."
"""Norm after the vision encoder, which LAVIS trains also when the encoder is frozen."""
VISION, LANGUAGE = "vision_model.", "language_model."
"""Beginnings of the names of the parts that LAVIS may freeze."""
QFORMER_WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
_CLIP_NAMES = ("class_embedding", "positional_embedding", "conv1.", "ln_pre.", "transformer.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A model of LAVIS."""

    name: str
    """Name in LAVIS, `arch` in its configurations."""
    family: str
    """Key of `models.registry.FAMILIES`."""
    text_type: str = ""
    """Type of the language model; "": it has none."""
    base: str
    """Model on the hub that a checkpoint may belong to, for messages."""


OPT = Kind(name="blip2_opt", family="opt", text_type="opt", base="Salesforce/blip2-opt-2.7b")
T5 = Kind(name="blip2_t5", family="t5", text_type="t5", base="Salesforce/blip2-flan-t5-xl")
T5_INSTRUCT = Kind(
    name="blip2_t5_instruct", family="instructblip", text_type="t5", base="Salesforce/instructblip-flan-t5-xl"
)
VICUNA_INSTRUCT = Kind(
    name="blip2_vicuna_instruct", family="instructblip", text_type="llama", base="Salesforce/instructblip-vicuna-7b"
)
STAGE_1 = Kind(name="blip2", family="matching", base="Salesforce/blip2-itm-vit-g")
_HEADS = {
    "opt_proj.weight": OPT,
    "t5_proj.weight": T5,
    "llm_proj.weight": VICUNA_INSTRUCT,
    "itm_head.weight": STAGE_1,
}
"""A parameter that no other model has, which every checkpoint holds as it is always trained."""

_EMBEDDINGS = {
    "LayerNorm": {"instructblip": "qformer.embeddings.layernorm", "": "qformer.layernorm"},
    "word_embeddings": {"instructblip": "qformer.embeddings.word_embeddings", "": "embeddings.word_embeddings"},
    "position_embeddings": {
        "instructblip": "qformer.embeddings.position_embeddings",
        "": "embeddings.position_embeddings",
    },
}
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"query_tokens", "query_tokens"),
        (r"visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
        (r"visual_encoder\.pos_embed", POSITIONS),
        (r"visual_encoder\.patch_embed\.proj\.(weight|bias)", r"vision_model.embeddings.patch_embedding.\1"),
        (
            r"visual_encoder\.blocks\.(\d+)\.norm([12])\.(weight|bias)",
            r"vision_model.encoder.layers.\1.layer_norm\2.\3",
        ),
        (
            r"visual_encoder\.blocks\.(\d+)\.attn\.(qkv\.weight|q_bias|v_bias)",
            r"vision_model.encoder.layers.\1.self_attn.\2",
        ),
        (
            r"visual_encoder\.blocks\.(\d+)\.attn\.proj\.(weight|bias)",
            r"vision_model.encoder.layers.\1.self_attn.projection.\2",
        ),
        (r"visual_encoder\.blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"vision_model.encoder.layers.\1.mlp.\2.\3"),
        (r"ln_vision\.(weight|bias)", LAST_NORM + r"\1"),
        (
            r"Qformer\.bert\.encoder\.layer\.(\d+)\.((?:cross)?attention)\.self\.(.+)",
            r"qformer.encoder.layer.\1.\2.attention.\3",
        ),
        (r"Qformer\.bert\.encoder\.layer\.(\d+)\.(.+)", r"qformer.encoder.layer.\1.\2"),
        (r"(vision|text)_proj\.(weight|bias)", r"\1_projection.\2"),
        (r"itm_head\.(weight|bias)", r"itm_head.\1"),
        (r"(?:opt|t5|llm)_proj\.(weight|bias)", r"language_projection.\1"),
        (r"(?:opt|t5|llm)_model\.(.+)", LANGUAGE + r"\1"),
    )
)
_LEFT_OUT = re.compile(
    r"temp|Qformer\.cls\..+|Qformer\.bert\.embeddings\.position_ids|llm_model\..+\.rotary_emb\.inv_freq"
)


def recognise(keys: Collection[str]) -> Kind | None:
    """Return the model that a checkpoint is of, or None."""
    kind = next((kind for head, kind in _HEADS.items() if head in keys), None)
    return T5_INSTRUCT if kind is T5 and QFORMER_WORDS in keys else kind


def is_clip(key: str) -> bool:
    """Return True for a parameter of the CLIP ViT-L that LAVIS can use as its vision encoder."""
    return key.startswith(tuple(f"visual_encoder.{name}" for name in _CLIP_NAMES))


def is_left_out(key: str) -> bool:
    """Return True for what the classes of transformers have no place for.

    That is the captioning head and the temperature of stage 1, which scores and vectors do not need; and constants
    that are computed.
    """
    return _LEFT_OUT.fullmatch(key) is not None


def rename(key: str, kind: Kind) -> str | None:
    """Return the name in transformers of a parameter of LAVIS, or None if it is not known.

    The biases of queries and values keep their own names, see QUERY_BIAS.
    """
    for name, places in _EMBEDDINGS.items():
        beginning = f"Qformer.bert.embeddings.{name}."
        if key.startswith(beginning):
            return f"{places.get(kind.family, places[''])}.{key.removeprefix(beginning)}"
    for pattern, replacement in _RULES:
        if found := pattern.fullmatch(key):
            return found.expand(replacement)
    return None


def shared_names(text_type: str, names: Collection[str]) -> tuple[str, ...]:
    """Return the names under which a checkpoint may hold the word embeddings of its language model.

    `names` are all names of the base: an output layer that they do not list shares the weights of the embeddings, as
    that of OPT always does.
    """
    head = "language_model.lm_head.weight"
    found = {
        "opt": ("language_model.model.decoder.embed_tokens.weight",),
        "llama": ("language_model.model.embed_tokens.weight",),
        "t5": tuple(
            f"language_model.{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
        ),
    }[text_type]
    return (*found, head) if text_type == "opt" or head not in names else found


def listed(keys: Iterable[str]) -> str:
    """Return names as one line, in which those that differ in their numbers only are one name with `*` and a count."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", key), []).append(key)
    return ", ".join(f"{name} ({len(group)})" if len(group) > 1 else group[0] for name, group in sorted(groups.items()))
