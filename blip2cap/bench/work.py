"""A model's configuration -> how much it has to compute and to read for one image, and the images/s that this allows.

Plain arithmetic. Covered: matrix products and attention, two operations for each multiply and add; the reading of
weights, once for all rows of a call, and of cached keys and values. Not covered: norms, activations, biases, and the
reading of activations, which together are small; so the limit is one that no program can pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_VISION = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "image_size": 224,
    "patch_size": 14,
}
_QFORMER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 1408,
}
_TEXT: dict[str, dict[str, Any]] = {
    "opt": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "ffn_dim": 3072,
        "num_attention_heads": 12,
        "vocab_size": 50272,
    },
    "t5": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 32128},
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
}
"""What transformers takes for a key that a configuration leaves out."""


TEXT_PHASES = ("prefill", "steps")
"""What is done for texts; the others are done for images, but for InstructBLIP's Q-Former, whose weights are few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One part of the work on one image."""

    name: str
    """vision, qformer, projection, prefill or steps."""
    flops: float
    """For one image, with all its texts."""
    weight_bytes: float
    """Of the weights that a call reads, however many rows it has."""
    num_reads: float
    """How many calls one image takes part in: 1, the number of its texts, or of all their decode steps."""
    state_bytes: float = 0.0
    """Keys and values read and written for one image."""

    def seconds(self, flops_per_s: float, bytes_per_s: float, rows: int) -> float:
        """Return the least time for one image if a call has `rows` rows: to compute, or to read if that is longer."""
        num_bytes = self.weight_bytes * self.num_reads / rows + self.state_bytes
        return max(self.flops / flops_per_s, num_bytes / bytes_per_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a model has to do for one image."""

    phases: tuple[Phase, ...]
    head_flops: float
    """Of the language model's last layer, which turns hidden states into words; part of prefill and steps."""
    kv_bytes: float
    """Of the keys and values that one text has at its end, all its beams together."""

    def __getitem__(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def flops(self) -> float:
        """For one image, all phases."""
        return sum(phase.flops for phase in self.phases)

    @property
    def step_bytes(self) -> float:
        """Of the weights that one decode step reads."""
        return self["steps"].weight_bytes

    def seconds(self, flops_per_s: float, bytes_per_s: float, *, images: int, texts: int) -> float:
        """Return the least time for one image if a call has so many images, or texts."""
        return sum(
            phase.seconds(flops_per_s, bytes_per_s, texts if phase.name in TEXT_PHASES else images)
            for phase in self.phases
        )


def count(
    config: Mapping[str, Any],
    *,
    prompts: Sequence[int],
    new_tokens: float,
    num_beams: int = 1,
    qformer_prompts: Sequence[int] = (),
    number_bytes: float = 2.0,
    weight_bytes: float | None = None,
) -> Work:
    """Count the work of the model that `config`, the content of a config.json, describes.

    `prompts` holds the number of prompt tokens of each text of an image, `qformer_prompts` what InstructBLIP's Q-Former
    reads of it, `new_tokens` how many are generated for each, the one that ends it too. A number has `number_bytes`;
    weights in the layers of a quantised model have `weight_bytes`. Beams share the image and the prompt.
    """
    vision = _VISION | dict(config.get("vision_config") or {})
    qformer = _QFORMER | {"encoder_hidden_size": vision["hidden_size"]} | dict(config.get("qformer_config") or {})
    text = _text_config(config)
    num_queries = int(config.get("num_query_tokens") or 32)
    layer_bytes = number_bytes if weight_bytes is None else weight_bytes
    num_patches = (vision["image_size"] // vision["patch_size"]) ** 2
    texts = _Texts(
        context=tuple(num_queries + num_tokens for num_tokens in prompts),
        steps=max(0.0, new_tokens - 1),
        beams=num_beams,
    )
    count_language = _t5 if text["model_type"] == "t5" else _decoder_only
    language, head_flops, kv_bytes = count_language(text, texts, number_bytes, layer_bytes)
    width = text["d_model"] if text["model_type"] == "t5" else text["hidden_size"]
    runs = [num_queries + num_tokens for num_tokens in qformer_prompts] or [num_queries]
    projection = qformer["hidden_size"] * width
    return Work(
        phases=(
            _vision(vision, num_patches, layer_bytes),
            _qformer(qformer, num_queries, num_patches + 1, runs, number_bytes),
            Phase(
                name="projection",
                flops=2.0 * len(runs) * num_queries * projection,
                weight_bytes=projection * number_bytes,
                num_reads=len(runs),
            ),
            *language,
        ),
        head_flops=head_flops,
        kv_bytes=kv_bytes,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Texts:
    """What is generated for one image."""

    context: tuple[int, ...]
    """Tokens before the first new one, those of the image too, for each text."""
    steps: float
    """Calls after the one that reads the context."""
    beams: int

    @property
    def num_steps(self) -> float:
        return self.steps * len(self.context)

    def attended(self, context: int) -> float:
        """Sum, over the steps, of the tokens that one beam has behind it, itself included."""
        return self.steps * context + self.steps * (self.steps + 1) / 2


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    text = {"model_type": "opt"} | dict(config.get("text_config") or {})
    return _TEXT[text["model_type"]] | text


def _vision(vision: Mapping[str, Any], num_patches: int, weight_bytes: float) -> Phase:
    width, tokens = vision["hidden_size"], num_patches + 1
    layer = 4 * width**2 + 2 * width * vision["intermediate_size"]
    patch = 3 * vision["patch_size"] ** 2 * width
    layers = vision["num_hidden_layers"]
    return Phase(
        name="vision",
        flops=2.0 * num_patches * patch + layers * (2.0 * tokens * layer + 4.0 * tokens**2 * width),
        weight_bytes=(patch + layers * layer) * weight_bytes,
        num_reads=1,
    )


def _qformer(
    qformer: Mapping[str, Any], num_queries: int, num_patches: int, runs: Sequence[int], weight_bytes: float
) -> Phase:
    """Count queries that read the patches; in each of `runs`, words of an instruction stand beside them."""
    width, seen = qformer["hidden_size"], qformer["encoder_hidden_size"]
    layers = qformer["num_hidden_layers"]
    crossing = -(-layers // qformer["cross_attention_frequency"])
    layer = 4 * width**2 + 2 * width * qformer["intermediate_size"]
    flops = 0.0
    for tokens in runs:
        flops += layers * (2.0 * tokens * layer + 4.0 * tokens**2 * width)
        flops += crossing * 2.0 * (2 * num_queries * width**2 + 2 * num_patches * seen * width)
        flops += crossing * 4.0 * num_queries * num_patches * width
    weights = layers * layer + crossing * (2 * width**2 + 2 * seen * width)
    return Phase(name="qformer", flops=flops, weight_bytes=weights * weight_bytes, num_reads=len(runs))


_Language = tuple[tuple[Phase, Phase], float, float]
"""Prefill and steps, operations of the head, bytes of keys and values."""


def _decoder_only(text: Mapping[str, Any], texts: _Texts, number_bytes: float, weight_bytes: float) -> _Language:
    """Count OPT and Llama: the context is read in one call, then one token a step."""
    width, layers = text["hidden_size"], text["num_hidden_layers"]
    head_width = text.get("head_dim") or width // text["num_attention_heads"]
    attention = text["num_attention_heads"] * head_width
    kv = (text.get("num_key_value_heads") or text["num_attention_heads"]) * head_width
    mlp = 2 * width * text["ffn_dim"] if text["model_type"] == "opt" else 3 * width * text["intermediate_size"]
    layer = 2 * width * attention + 2 * width * kv + mlp
    head = text["vocab_size"] * (text.get("word_embed_proj_dim") or width)
    token_bytes = 2 * layers * kv * number_bytes
    read = layers * layer * weight_bytes + head * number_bytes
    num_pending, beams = len(texts.context), texts.beams
    prefill = sum(layers * (2.0 * tokens * layer + 2.0 * tokens * (tokens + 1) * attention) for tokens in texts.context)
    steps = beams * sum(
        layers * (2.0 * texts.steps * layer + 4.0 * texts.attended(tokens) * attention) for tokens in texts.context
    )
    own = texts.steps * (texts.steps + 1) / 2
    return (
        _text_phases(
            texts, prefill, steps, head=head, prefill_read=read, step_read=read, token_bytes=token_bytes, own=own
        ),
        2.0 * head * (num_pending + beams * texts.num_steps),
        token_bytes * (sum(texts.context) / num_pending + beams * texts.steps),
    )


def _t5(text: Mapping[str, Any], texts: _Texts, number_bytes: float, weight_bytes: float) -> _Language:
    """Count T5: prefill is the encoder, its keys and values for the decoder, and the decoder's start token."""
    width, attention = text["d_model"], text["num_heads"] * text["d_kv"]
    layers, decoder_layers = text["num_layers"], text.get("num_decoder_layers") or text["num_layers"]
    gated = str(text.get("feed_forward_proj", "relu")).startswith("gated")
    mlp = (3 if gated else 2) * width * text["d_ff"]
    encoder, decoder, crossing = 4 * width * attention + mlp, 6 * width * attention + mlp, 2 * width * attention
    head = text["vocab_size"] * width
    token_bytes = 2 * decoder_layers * attention * number_bytes
    step_read = decoder_layers * decoder * weight_bytes + head * number_bytes
    num_pending, beams = len(texts.context), texts.beams
    prefill = steps = 0.0
    for tokens in texts.context:
        prefill += layers * (2.0 * tokens * encoder + 4.0 * tokens**2 * attention)
        prefill += decoder_layers * (2.0 * tokens * crossing + 2.0 * decoder + 4.0 * (tokens + 1) * attention)
        # A step's own token comes after the start token and those of the steps before it.
        attended = texts.attended(tokens + 1)
        steps += beams * decoder_layers * (2.0 * texts.steps * decoder + 4.0 * attended * attention)
    own = texts.attended(1)
    read = (layers * encoder + decoder_layers * crossing) * weight_bytes + step_read
    return (
        _text_phases(
            texts, prefill, steps, head=head, prefill_read=read, step_read=step_read, token_bytes=token_bytes, own=own
        ),
        2.0 * head * (num_pending + beams * texts.num_steps),
        token_bytes * (sum(texts.context) / num_pending + beams * (texts.steps + 1)),
    )


def _text_phases(
    texts: _Texts,
    prefill: float,
    steps: float,
    *,
    head: float,
    prefill_read: float,
    step_read: float,
    token_bytes: float,
    own: float,
) -> tuple[Phase, Phase]:
    """Return prefill and steps, given the operations of their layers; the head's are added.

    `head` is the number of its weights, `own` the sum over the steps of the tokens that a beam has to itself.
    """
    return (
        Phase(
            name="prefill",
            flops=prefill + 2.0 * head * len(texts.context),
            weight_bytes=prefill_read,
            num_reads=len(texts.context),
            state_bytes=token_bytes * sum(texts.context),
        ),
        Phase(
            name="steps",
            flops=steps + 2.0 * head * texts.beams * texts.num_steps,
            weight_bytes=step_read,
            num_reads=texts.num_steps,
            state_bytes=token_bytes * sum(texts.steps * tokens + texts.beams * own for tokens in texts.context),
        ),
    )
