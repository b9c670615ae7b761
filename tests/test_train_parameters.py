"""The parameters that train: exact lists for every setting, and their groups in the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

import pytest

from blip2cap.errors import UsageError
from blip2cap.train.model.trainee import Trainee
from blip2cap.train.options.model import OptimOptions, TuneOptions
from tests.checkpoints import KINDS
from tests.training import read_base, untie

WEIGHTS = ("weight", "bias")


def joined(*parts: Iterable[str] | str) -> set[str]:
    """Join all combinations with dots."""
    return {".".join(words) for words in product(*([part] if isinstance(part, str) else part for part in parts))}


def attention(*, cross: bool) -> set[str]:
    names = {"attention", "crossattention"} if cross else {"attention"}
    inner = {"attention.query", "attention.key", "attention.value", "output.dense", "output.LayerNorm"}
    return joined(names, inner, WEIGHTS)


FEED_FORWARD = ("intermediate.dense", "output.dense", "output.LayerNorm")
FEED_FORWARD_QUERY = ("intermediate_query.dense", "output_query.dense", "output_query.LayerNorm")


def qformer_layers(*, text: bool) -> set[str]:
    """Two layers, of which the first attends to the image."""
    mlp = joined((*FEED_FORWARD_QUERY, *(FEED_FORWARD if text else ())), WEIGHTS)
    return {
        *joined("model.qformer.encoder.layer.0", attention(cross=True) | mlp),
        *joined("model.qformer.encoder.layer.1", attention(cross=False) | mlp),
    }


NORM = joined("model.vision_model.post_layernorm", WEIGHTS)
QFORMER = {
    *NORM,
    "model.query_tokens",
    *joined("model.qformer.layernorm", WEIGHTS),
    *qformer_layers(text=False),
    *joined("model.language_projection", WEIGHTS),
}
INSTRUCT = {
    *NORM,
    "model.query_tokens",
    *joined("model.qformer.embeddings", ("word_embeddings.weight", "position_embeddings.weight")),
    *joined("model.qformer.embeddings.layernorm", WEIGHTS),
    *qformer_layers(text=True),
    *joined("model.language_projection", WEIGHTS),
}
MATCHING = {
    *NORM,
    "model.query_tokens",
    *joined("model.embeddings", ("word_embeddings.weight", "position_embeddings.weight")),
    *joined("model.qformer.layernorm", WEIGHTS),
    *qformer_layers(text=True),
    *joined("model", ("vision_projection", "text_projection", "itm_head"), WEIGHTS),
    *joined("stage1.text_head.transform", ("0", "2"), WEIGHTS),
    "stage1.text_head.bias",
    "stage1.log_temperature",
}
EXTRAS = {name for name in MATCHING if name.startswith("stage1.")}
VISION = {
    *joined("model.vision_model.embeddings", ("class_embedding", "position_embedding")),
    *joined("model.vision_model.embeddings.patch_embedding", WEIGHTS),
    *joined(
        "model.vision_model.encoder.layers",
        ("0", "1"),
        ("self_attn.qkv", "self_attn.projection", "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"),
        WEIGHTS,
    ),
    *NORM,
}
OPT_LAYERS = joined("model.language_model.model.decoder.layers", ("0", "1"))
OPT = {
    *joined("model.language_model.model.decoder", ("embed_tokens.weight", "embed_positions.weight")),
    *joined("model.language_model.model.decoder.final_layer_norm", WEIGHTS),
    *joined(OPT_LAYERS, "self_attn", ("q_proj", "k_proj", "v_proj", "out_proj"), WEIGHTS),
    *joined(OPT_LAYERS, ("fc1", "fc2", "self_attn_layer_norm", "final_layer_norm"), WEIGHTS),
}  # lm_head is embed_tokens
T5_STACKS, T5_BLOCKS = ("encoder", "decoder"), ("0", "1")
T5_FEED_FORWARD = (*joined("DenseReluDense", ("wi_0", "wi_1", "wo")), "layer_norm")
T5 = joined(
    "model.language_model",
    {
        "shared.weight",  # the head too, in these checkpoints
        *joined(T5_STACKS, "final_layer_norm.weight"),
        *joined(T5_STACKS, "block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        *joined(T5_STACKS, "block", T5_BLOCKS, "layer.0.SelfAttention", ("q", "k", "v", "o"), "weight"),
        *joined(T5_STACKS, "block", T5_BLOCKS, "layer.0.layer_norm.weight"),
        *joined("decoder.block", T5_BLOCKS, "layer.1.EncDecAttention", ("q", "k", "v", "o"), "weight"),
        *joined("decoder.block", T5_BLOCKS, "layer.1.layer_norm.weight"),
        *joined("encoder.block", T5_BLOCKS, "layer.1", T5_FEED_FORWARD, "weight"),
        *joined("decoder.block", T5_BLOCKS, "layer.2", T5_FEED_FORWARD, "weight"),
    },
)
LLAMA_LAYERS = joined("model.language_model.model.layers", ("0", "1"))
LLAMA = {
    *joined("model.language_model", ("model.embed_tokens", "model.norm", "lm_head"), "weight"),
    *joined(LLAMA_LAYERS, "self_attn", ("q_proj", "k_proj", "v_proj", "o_proj"), "weight"),
    *joined(LLAMA_LAYERS, "mlp", ("gate_proj", "up_proj", "down_proj"), "weight"),
    *joined(LLAMA_LAYERS, ("input_layernorm", "post_attention_layernorm"), "weight"),
}
ADAPTERS = ("lora_A.default.weight", "lora_B.default.weight")
LORA = {
    "opt": joined(OPT_LAYERS, "self_attn", ("q_proj", "v_proj"), ADAPTERS),
    "t5": joined(
        "model.language_model",
        {
            *joined(T5_STACKS, "block", T5_BLOCKS, "layer.0.SelfAttention", ("q", "v"), ADAPTERS),
            *joined("decoder.block", T5_BLOCKS, "layer.1.EncDecAttention", ("q", "v"), ADAPTERS),
        },
    ),
    "llama": joined(LLAMA_LAYERS, "self_attn", ("q_proj", "v_proj"), ADAPTERS),
}
LANGUAGE = {"opt": OPT, "t5": T5, "llama": LLAMA}


def trained(folder: Path, *train: str, stage: str = "caption", **settings: tuple[str, ...]) -> Trainee:
    tune = TuneOptions(train=train, **settings)  # type: ignore[arg-type]
    return Trainee(read_base(folder, stage, tune), stage=stage, tune=tune, seed=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "train",
    [
        ("qformer",),
        ("vision",),
        ("llm",),
        ("lora",),
        ("all",),
        ("qformer", "lora"),
        ("qformer", "vision", "lora"),
        ("vision", "llm"),
    ],
    ids="+".join,
)
def test_exactly_these_parameters_train(checkpoints: Callable[[str], Path], kind: str, train: tuple[str, ...]) -> None:
    trainee = trained(checkpoints(kind), *train)
    text = kind.removeprefix("instructblip-")
    qformer = INSTRUCT if kind.startswith("instructblip") else QFORMER
    parts = {"qformer": qformer, "vision": VISION, "llm": LANGUAGE[text], "lora": LORA[text]}
    parts["all"] = parts["qformer"] | VISION | parts["llm"]
    expected = set.union(*(parts[part] for part in train))
    assert sorted(trainee.trainable()) == sorted(expected)
    assert {name for name, each in trainee.named_parameters() if each.requires_grad} == expected


@pytest.mark.parametrize(
    ("train", "expected"),
    [(("qformer",), MATCHING), (("vision",), VISION | EXTRAS), (("all",), MATCHING | VISION)],
    ids=["qformer", "vision", "all"],
)
def test_exactly_these_parameters_train_in_stage_1(
    checkpoints: Callable[[str], Path], train: tuple[str, ...], expected: set[str]
) -> None:
    assert sorted(trained(checkpoints("matching"), *train, stage="stage1").trainable()) == sorted(expected)


def test_the_head_of_flan_t5_trains_apart(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    trainee = trained(untie(checkpoints("t5"), tmp_path), "llm")
    assert sorted(trainee.trainable()) == sorted(T5 | {"model.language_model.lm_head.weight"})


def test_all_is_every_parameter_there_is(checkpoints: Callable[[str], Path]) -> None:
    for kind in KINDS:
        trainee = trained(checkpoints(kind), "all")
        assert trainee.trainable().keys() == dict(trainee.named_parameters()).keys()


def test_adapters_go_where_they_are_asked_for(checkpoints: Callable[[str], Path]) -> None:
    trainee = trained(checkpoints("opt"), "lora", lora_targets=("fc1", "out_proj"))
    assert sorted(trainee.trainable()) == sorted(joined(OPT_LAYERS, ("fc1", "self_attn.out_proj"), ADAPTERS))
    with pytest.raises(UsageError, match=r"lora_targets fc3: .* has no such layers. Expected one or more of fc1, fc2,"):
        trained(checkpoints("opt"), "lora", lora_targets=("fc3",))


def rates(trainee: Trainee, **options: float) -> dict[str, tuple[float, float]]:
    """Return learning rate and decay of each parameter."""
    groups = trainee.groups(OptimOptions(**options))  # type: ignore[arg-type]
    for group in groups:
        assert [trainee.trainable()[name] for name in group["names"]] == group["params"]
    found = [(name, (group["lr"], group["weight_decay"])) for group in groups for name in group["names"]]
    assert sorted(name for name, _ in found) == sorted(trainee.trainable())
    return dict(found)


def test_norms_and_biases_do_not_decay(checkpoints: Callable[[str], Path]) -> None:
    found = rates(trained(checkpoints("opt"), "all"), weight_decay=0.1)
    for name, (_, decay) in found.items():
        assert decay == (0.0 if name.endswith(".bias") or "norm" in name.lower() else 0.1), name


def test_lower_layers_of_the_vision_encoder_learn_more_slowly(checkpoints: Callable[[str], Path]) -> None:
    found = rates(trained(checkpoints("opt"), "all"), learning_rate=1.0, vision_layer_decay=0.5)
    for name, (rate, _) in found.items():
        expected = 1.0
        for part, its_rate in (("embeddings.", 0.125), ("encoder.layers.0.", 0.25), ("encoder.layers.1.", 0.5)):
            if name.startswith(f"model.vision_model.{part}"):
                expected = its_rate
        assert rate == pytest.approx(expected), name
