"""Checkpoints as LAVIS saves them, made from small networks of transformers.

The names are written out here from LAVIS's sources (lavis/models/eva_vit.py, lavis/models/blip2_models/Qformer.py,
blip2_opt.py, blip2_t5.py, blip2_t5_instruct.py, blip2_vicuna_instruct.py, blip2_qformer.py), without the package's map.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip2cap.models.blip2.model import NETWORK_CLASSES
from blip2cap.models.registry import recognise

MODELS = {"opt": "opt_model", "t5": "t5_model", "instructblip-t5": "t5_model", "instructblip-llama": "llm_model"}
"""Name of the language model in LAVIS by kind of checkpoint; a matching one has none."""
_VISION = {
    "vision_model.embeddings.class_embedding": "visual_encoder.cls_token",
    "vision_model.embeddings.position_embedding": "visual_encoder.pos_embed",
    "vision_model.embeddings.patch_embedding.": "visual_encoder.patch_embed.proj.",
    "vision_model.post_layernorm.": "ln_vision.",
    "vision_model.encoder.layers.": "visual_encoder.blocks.",
    ".layer_norm": ".norm",
    ".self_attn.projection.": ".attn.proj.",
    ".self_attn.qkv.": ".attn.qkv.",
}
_OTHERS = {
    "qformer.embeddings.layernorm.": "Qformer.bert.embeddings.LayerNorm.",
    "qformer.layernorm.": "Qformer.bert.embeddings.LayerNorm.",
    "qformer.embeddings.": "Qformer.bert.embeddings.",
    "qformer.encoder.": "Qformer.bert.encoder.",
    "attention.attention.": "attention.self.",
    "vision_projection.": "vision_proj.",
    "text_projection.": "text_proj.",
}


def read_network(folder: Path) -> Any:
    """Read the network of a checkpoint folder with transformers' own class."""
    config = NETWORK_CLASSES["opt"].config_class.get_config_dict(folder)[0]
    network: Any = NETWORK_CLASSES[recognise("network", config).name].from_pretrained(folder, dtype=torch.float32)
    return network.eval()


def retrain(network: Any, *, frozen: tuple[str, ...] = (), seed: int = 1) -> None:
    """Give all parameters other values but those whose names begin with one of `frozen`, as LAVIS could."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            is_norm = name.startswith("vision_model.post_layernorm")
            if name.startswith(frozen) and not is_norm:
                continue
            parameter.normal_(0.0, 1.0 if "query_tokens" in name else 0.25, generator=generator)
    clear_key_biases(network)


def clear_key_biases(network: Any) -> None:
    """Set the biases of keys in the vision encoder to 0: LAVIS has none. They have no effect on any attention."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("qkv.bias"):
                parameter.view(3, -1)[1].zero_()


def lavis_state(network: Any, kind: str) -> dict[str, Tensor]:
    """Return the `state_dict()` that LAVIS's model has with the parameters of a network."""
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if name.startswith("language_model."):
            state[name.replace("language_model", MODELS[kind], 1)] = tensor
            continue
        if name.startswith("language_projection."):
            name = name.replace("language_projection", MODELS[kind].replace("model", "proj"))
        elif name.startswith("embeddings."):
            name = f"Qformer.bert.{name}"
        for ours, theirs in (_VISION if name.startswith("vision_model.") else _OTHERS).items():
            name = name.replace(ours, theirs)
        if name.endswith("attn.qkv.bias"):
            query, key, value = tensor.chunk(3)
            assert not key.any()
            state[name.replace("qkv.bias", "q_bias")], state[name.replace("qkv.bias", "v_bias")] = query, value
        else:
            state[name] = tensor
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(64)[None]
    if kind == "matching":
        words = state["Qformer.bert.embeddings.word_embeddings.weight"]
        state["temp"] = torch.tensor(0.07)
        state["Qformer.cls.predictions.decoder.weight"] = words
        for name in ("bias", "decoder.bias"):
            state[f"Qformer.cls.predictions.{name}"] = torch.zeros(len(words))
        for name, shape in (
            ("dense.weight", (32, 32)),
            ("dense.bias", 32),
            ("LayerNorm.weight", 32),
            ("LayerNorm.bias", 32),
        ):
            state[f"Qformer.cls.predictions.transform.{name}"] = torch.zeros(shape)
    if kind == "instructblip-llama":
        for layer in range(network.config.text_config.num_hidden_layers):
            state[f"llm_model.model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    return state


def without_frozen(state: dict[str, Tensor], kind: str, *, vision: bool = True) -> dict[str, Tensor]:
    """Return what LAVIS saves if the language model is frozen, and the vision encoder unless `vision` is False.

    It removes frozen parameters under the first name of each only (`RunnerBase._save_checkpoint`): further names of
    shared ones remain, and so do buffers.
    """
    again = ("lm_head.weight",) if kind == "opt" else ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    kept = {f"{MODELS.get(kind)}.{name}" for name in again}
    return {
        name: tensor
        for name, tensor in state.items()
        if name in kept
        or name.endswith("inv_freq")
        or not name.startswith((f"{MODELS.get(kind)}.", *(["visual_encoder."] if vision else [])))
    }


def save(path: Path, state: dict[str, Tensor], **config: Any) -> Path:
    """Save a checkpoint file as LAVIS does, with the state of its optimiser; `config`: its section `model`."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-5}]}
    content = {
        "model": state,
        "optimizer": optimizer,
        "config": {"run": {"task": "captioning", "seed": 42}, "model": config},
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "epoch": 30,
    }
    torch.save(content, path)
    return path


def lavis_names(kind: str, *, num_layers: int = 2) -> set[str]:
    """Return all names of LAVIS's model with encoders of `num_layers` layers, and a language model of 2."""
    names = {"query_tokens", "visual_encoder.cls_token", "visual_encoder.pos_embed"}
    names |= _affine("visual_encoder.patch_embed.proj", "ln_vision", "Qformer.bert.embeddings.LayerNorm")
    names |= {"Qformer.bert.embeddings.position_ids"}
    reads_text = kind not in ("opt", "t5")
    for layer in range(num_layers):
        block = f"visual_encoder.blocks.{layer}"
        names |= _affine(*(f"{block}.{part}" for part in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")))
        names |= {f"{block}.attn.{part}" for part in ("qkv.weight", "q_bias", "v_bias")}
        bert = f"Qformer.bert.encoder.layer.{layer}"
        attentions = ["attention", "crossattention"] if layer % 2 == 0 else ["attention"]
        for attention, part in itertools.product(attentions, ("query", "key", "value")):
            names |= _affine(f"{bert}.{attention}.self.{part}")
        for attention in attentions:
            names |= _affine(f"{bert}.{attention}.output.dense", f"{bert}.{attention}.output.LayerNorm")
        for branch in ("_query", *([""] if reads_text else [])):
            names |= _affine(f"{bert}.intermediate{branch}.dense")
            names |= _affine(f"{bert}.output{branch}.dense", f"{bert}.output{branch}.LayerNorm")
    if reads_text:
        names |= {f"Qformer.bert.embeddings.{part}_embeddings.weight" for part in ("word", "position")}
    if kind == "matching":
        names |= _affine("vision_proj", "text_proj", "itm_head", "Qformer.cls.predictions.decoder")
        names |= _affine(*(f"Qformer.cls.predictions.transform.{part}" for part in ("dense", "LayerNorm")))
        return names | {"temp", "Qformer.cls.predictions.bias"}
    names |= _affine(MODELS[kind].replace("model", "proj"))
    language = {"opt": _opt_names, "t5": _t5_names, "instructblip-t5": _t5_names, "instructblip-llama": _llama_names}
    return names | {f"{MODELS[kind]}.{name}" for name in language[kind]()}


def _affine(*names: str) -> set[str]:
    return {f"{name}.{part}" for name in names for part in ("weight", "bias")}


def _opt_names() -> set[str]:
    names = {"lm_head.weight", "model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"}
    names |= _affine("model.decoder.final_layer_norm")
    parts = ("fc1", "fc2", "final_layer_norm", "self_attn_layer_norm")
    attention = tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out"))
    return names | _affine(
        *(f"model.decoder.layers.{layer}.{part}" for layer in (0, 1) for part in (*parts, *attention))
    )


def _t5_names() -> set[str]:
    names = {"shared.weight", "lm_head.weight"}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        names |= {f"{stack}.embed_tokens.weight", f"{stack}.final_layer_norm.weight"}
        names |= {f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"}
        for block in (f"{stack}.block.{layer}.layer" for layer in (0, 1)):
            names |= {f"{block}.{layer}.layer_norm.weight" for layer in range(last + 1)}
            names |= {f"{block}.0.SelfAttention.{part}.weight" for part in "qkvo"}
            names |= {f"{block}.{last}.DenseReluDense.{part}.weight" for part in ("wi_0", "wi_1", "wo")}
            if stack == "decoder":
                names |= {f"{block}.1.EncDecAttention.{part}.weight" for part in "qkvo"}
    return names


def _llama_names() -> set[str]:
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for layer in ("model.layers.0", "model.layers.1"):
        names |= {f"{layer}.self_attn.{part}_proj.weight" for part in "qkvo"}
        names |= {f"{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
        names |= {f"{layer}.input_layernorm.weight", f"{layer}.post_attention_layernorm.weight"}
        names |= {f"{layer}.self_attn.rotary_emb.inv_freq"}
    return names
