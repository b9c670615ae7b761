"""A model's configuration -> what it must compute and read for one image, and the images/s that this allows.

Plain arithmetic. Covered: matrix products and attention, two operations for each multiply and add; the reading of
weights, once for all rows of a call, and of cached keys and values. Not covered: norms, activations, biases, and the
reading of activations, which together are small; so no program can pass this limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Defaults of transformers, for keys that a configuration leaves out.
_VISION = {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "image_size": 224, "patch_size": 14}
_QFORMER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "cross_attention_frequency": 2}
_TEXT: dict[str, dict[str, Any]] = {
    "opt": {"hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072, "num_attention_heads": 12}
    | {"vocab_size": 50272},
    "t5": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 32128},
    "llama": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"vocab_size": 32000},
}

TEXT_PHASES = ("prefill", "steps")
"""Phases whose rows are texts; the rows of the others are images, but for InstructBLIP's Q-Former, whose weights are
few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One part of the work on one image."""

    name: str
    """vision, qformer, projection, prefill or steps."""
    flops: float
    """For one image, with all its texts."""
    weight_bytes: float
    """Bytes of the weights that a call reads, for any number of rows."""
    num_reads: float
    """Number of calls for one image: 1, the number of its texts, or of all their decode steps."""
    state_bytes: float = 0.0
    """Bytes of keys and values read and written for one image."""

    def seconds(self, flops_per_s: float, bytes_per_s: float, rows: int) -> float:
        """Return the least time for one image with `rows` rows in a call: to compute, or to read if that is longer."""
        num_bytes = self.weight_bytes * self.num_reads / rows + self.state_bytes
        return max(self.flops / flops_per_s, num_bytes / bytes_per_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The work of a model on one image."""

    phases: tuple[Phase, ...]
    head_flops: float
    """Operations of the language model's output layer; part of prefill and steps."""
    kv_bytes: float
    """Bytes of the keys and values of one finished text, with all its beams."""

    def __getitem__(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def flops(self) -> float:
        """Operations of all phases, for one image."""
        return sum(phase.flops for phase in self.phases)

    @property
    def step_bytes(self) -> float:
        """Bytes of the weights that one decode step reads."""
        return self["steps"].weight_bytes

    def seconds(
        self, flops_per_s: float, bytes_per_s: float, *, images: int, texts: int, names: Sequence[str] | None = None
    ) -> float:
        """Return the least time for one image with `images` images, or `texts` texts, in a call; of some phases."""
        return sum(
            phase.seconds(flops_per_s, bytes_per_s, texts if phase.name in TEXT_PHASES else images)
            for phase in self.phases
            if names is None or phase.name in names
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
    """Count the work of the model with the configuration `config`, the content of a config.json.

    `prompts` holds the number of prompt tokens of each text of an image, `qformer_prompts` those that InstructBLIP's
    Q-Former reads, `new_tokens` the number generated for each text, end token included. A number takes `number_bytes`;
    weights in the layers of a quantised model take `weight_bytes`. Beams share the image and the prompt.
    """
    vision = _VISION | dict(config.get("vision_config") or {})
    qformer = _QFORMER | {"encoder_hidden_size": vision["hidden_size"]} | dict(config.get("qformer_config") or {})
    text: dict[str, Any] = {"model_type": "opt"} | dict(config.get("text_config") or {})
    text = _TEXT[text["model_type"]] | text
    num_queries = int(config.get("num_query_tokens") or 32)
    layer_bytes = number_bytes if weight_bytes is None else weight_bytes
    num_patches = (vision["image_size"] // vision["patch_size"]) ** 2
    texts = _Texts(
        context=tuple(num_queries + num_tokens for num_tokens in prompts),
        steps=max(0.0, new_tokens - 1),
        beams=num_beams,
    )
    language = (_t5 if text["model_type"] == "t5" else _decoder_only)(text, texts, number_bytes, layer_bytes)
    runs = [num_queries + num_tokens for num_tokens in qformer_prompts] or [num_queries]
    projection = qformer["hidden_size"] * (text["d_model"] if text["model_type"] == "t5" else text["hidden_size"])
    num_texts, num_steps, beams = len(texts.context), texts.steps * len(texts.context), num_beams
    own = texts.attended(language.num_first)
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
            Phase(
                name="prefill",
                flops=language.prefill_flops + 2.0 * language.head * num_texts,
                weight_bytes=language.prefill_bytes,
                num_reads=num_texts,
                state_bytes=language.token_bytes * sum(texts.context),
            ),
            Phase(
                name="steps",
                flops=language.steps_flops + 2.0 * language.head * beams * num_steps,
                weight_bytes=language.step_bytes,
                num_reads=num_steps,
                state_bytes=language.token_bytes * sum(texts.steps * tokens + beams * own for tokens in texts.context),
            ),
        ),
        head_flops=2.0 * language.head * (num_texts + beams * num_steps),
        kv_bytes=language.token_bytes * (sum(texts.context) / num_texts + beams * (texts.steps + language.num_first)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Texts:
    """The texts of one image."""

    context: tuple[int, ...]
    """Tokens before the first new one, those of the image included, for each text."""
    steps: float
    """Calls after the one that reads the context."""
    beams: int

    def attended(self, context: int) -> float:
        """Sum, over the steps, of the tokens that one beam attends to, itself included."""
        return self.steps * context + self.steps * (self.steps + 1) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class _Language:
    """A language model: its layers' operations for all texts of an image, and the sizes of what it reads."""

    prefill_flops: float
    steps_flops: float
    head: int
    """Number of weights of the output layer."""
    prefill_bytes: float
    """Bytes of the weights that a prefill reads."""
    step_bytes: float
    """Bytes of the weights that a step reads."""
    token_bytes: float
    """Bytes of the keys and values of one token."""
    num_first: int
    """Tokens of its own that a beam has before the first step: T5's start token."""


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
    """Count queries that attend to the patches; each of `runs` holds the queries and the tokens of an instruction."""
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


def _decoder_only(text: Mapping[str, Any], texts: _Texts, number_bytes: float, weight_bytes: float) -> _Language:
    """Count OPT and Llama: one call reads the context, then one token a step."""
    width, layers = text["hidden_size"], text["num_hidden_layers"]
    head_width = text.get("head_dim") or width // text["num_attention_heads"]
    attention = text["num_attention_heads"] * head_width
    kv = (text.get("num_key_value_heads") or text["num_attention_heads"]) * head_width
    mlp = 2 * width * text["ffn_dim"] if text["model_type"] == "opt" else 3 * width * text["intermediate_size"]
    layer = 2 * width * attention + 2 * width * kv + mlp
    head = text["vocab_size"] * (text.get("word_embed_proj_dim") or width)
    read = layers * layer * weight_bytes + head * number_bytes
    prefill = sum(layers * (2.0 * tokens * layer + 2.0 * tokens * (tokens + 1) * attention) for tokens in texts.context)
    steps = texts.beams * sum(
        layers * (2.0 * texts.steps * layer + 4.0 * texts.attended(tokens) * attention) for tokens in texts.context
    )
    return _Language(
        prefill_flops=prefill,
        steps_flops=steps,
        head=head,
        prefill_bytes=read,
        step_bytes=read,
        token_bytes=2 * layers * kv * number_bytes,
        num_first=0,
    )


def _t5(text: Mapping[str, Any], texts: _Texts, number_bytes: float, weight_bytes: float) -> _Language:
    """Count T5: prefill is the encoder, its keys and values for the decoder, and the decoder's start token."""
    width, attention = text["d_model"], text["num_heads"] * text["d_kv"]
    layers, decoder_layers = text["num_layers"], text.get("num_decoder_layers") or text["num_layers"]
    gated = str(text.get("feed_forward_proj", "relu")).startswith("gated")
    mlp = (3 if gated else 2) * width * text["d_ff"]
    encoder, decoder, crossing = 4 * width * attention + mlp, 6 * width * attention + mlp, 2 * width * attention
    head = text["vocab_size"] * width
    step_bytes = decoder_layers * decoder * weight_bytes + head * number_bytes
    prefill = steps = 0.0
    for tokens in texts.context:
        prefill += layers * (2.0 * tokens * encoder + 4.0 * tokens**2 * attention)
        prefill += decoder_layers * (2.0 * tokens * crossing + 2.0 * decoder + 4.0 * (tokens + 1) * attention)
        # A step's own token comes after the start token and those of the steps before it.
        attended = texts.attended(tokens + 1)
        steps += texts.beams * decoder_layers * (2.0 * texts.steps * decoder + 4.0 * attended * attention)
    return _Language(
        prefill_flops=prefill,
        steps_flops=steps,
        head=head,
        prefill_bytes=(layers * encoder + decoder_layers * crossing) * weight_bytes + step_bytes,
        step_bytes=step_bytes,
        token_bytes=2 * decoder_layers * attention * number_bytes,
        num_first=1,
    )
