"""The work of a model, counted by hand here, by torch for small models, and known for the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

import blip2cap
from blip2cap.bench.work import Phase, Work, count
from tests.checkpoints import IMAGE_SIZE, make_checkpoint

KNOWN = Path(blip2cap.__file__).parent / "models" / "known"
SMALL: dict[str, Any] = {
    "num_query_tokens": 3,
    "vision_config": {
        "hidden_size": 2,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "image_size": 4,
        "patch_size": 2,
    },
    "qformer_config": {
        "hidden_size": 2,
        "intermediate_size": 4,
        "num_hidden_layers": 2,
        "cross_attention_frequency": 2,
    },
}
TEXT: dict[str, dict[str, Any]] = {
    "opt": {"hidden_size": 2, "num_hidden_layers": 1, "ffn_dim": 4, "num_attention_heads": 1},
    "t5": {"d_model": 2, "d_kv": 2, "num_heads": 1, "d_ff": 4, "num_layers": 1, "feed_forward_proj": "gated-gelu"},
    "llama": {
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "intermediate_size": 6,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}


def small(kind: str) -> dict[str, Any]:
    return SMALL | {"text_config": TEXT[kind] | {"model_type": kind, "vocab_size": 10}}


def flops(work: Work) -> dict[str, float]:
    return {phase.name: phase.flops for phase in work.phases}


def test_opt_counted_by_hand() -> None:
    work = count(small("opt"), prompts=[1], new_tokens=3)
    vision = 2 * 4 * 24 + 2 * 5 * 32 + 4 * 5 * 5 * 2  # 4 patches of 12 numbers; 5 tokens; each sees each
    qformer = 2 * (2 * 3 * 32 + 4 * 3 * 3 * 2) + 2 * (2 * 3 * 4 + 2 * 5 * 4) + 4 * 3 * 5 * 2
    prefill = 2 * 4 * 32 + 4 * (1 + 2 + 3 + 4) * 2 + 2 * 20  # of 4 tokens, the last one is turned into words
    steps = 2 * (2 * 32 + 2 * 20) + 4 * (5 + 6) * 2
    assert flops(work) == {
        "vision": vision,
        "qformer": qformer,
        "projection": 2 * 3 * 4,
        "prefill": prefill,
        "steps": steps,
    }
    assert work.flops == vision + qformer + 24 + prefill + steps
    assert work.head_flops == 3 * 2 * 20
    assert work.step_bytes == (32 + 20) * 2
    assert work.kv_bytes == (4 + 2) * 2 * 2 * 2  # tokens, keys and values, width, bytes
    assert work["steps"].state_bytes == (5 + 6) * 8


def test_t5_counted_by_hand() -> None:
    work = count(small("t5"), prompts=[1], new_tokens=3)
    encoder = 2 * 4 * (16 + 24) + 4 * 4 * 4 * 2
    keys_and_values = 2 * 4 * 8
    one_token = 2 * (24 + 24)  # attention to itself and, without keys and values, to the image; gated
    assert flops(work)["prefill"] == encoder + keys_and_values + one_token + 4 * (1 + 4) * 2 + 2 * 20
    assert flops(work)["steps"] == 2 * one_token + 4 * (2 + 4 + 3 + 4) * 2 + 2 * 2 * 20
    assert work.step_bytes == (48 + 20) * 2
    assert work["prefill"].weight_bytes == (40 + 8 + 48 + 20) * 2
    assert work.kv_bytes == (4 + 3) * 2 * 2 * 2


def test_llama_shares_keys_between_heads() -> None:
    work = count(small("llama"), prompts=[1], new_tokens=1)
    layer = 4 * 4 + 4 * 4 + 2 * 4 * 2 + 3 * 4 * 6
    assert flops(work)["prefill"] == 2 * 4 * layer + 4 * 10 * 4 + 2 * 40
    assert flops(work)["steps"] == 0
    assert work.kv_bytes == 4 * 2 * 2 * 2


@pytest.mark.parametrize("kind", TEXT)
def test_more_texts_and_beams_need_no_more_of_the_image(kind: str) -> None:
    one = count(small(kind), prompts=[2], new_tokens=5)
    beams = count(small(kind), prompts=[2], new_tokens=5, num_beams=3)
    texts = count(small(kind), prompts=[2, 2], new_tokens=5)
    for name in ("vision", "qformer", "projection"):
        assert one[name] == beams[name] == texts[name]
    assert beams["prefill"].flops == one["prefill"].flops
    assert beams["steps"].flops == 3 * one["steps"].flops
    assert beams["steps"].num_reads == one["steps"].num_reads == 4
    assert beams["steps"].state_bytes < 3 * one["steps"].state_bytes
    for name in ("prefill", "steps"):
        assert texts[name].flops == 2 * one[name].flops
        assert texts[name].state_bytes == 2 * one[name].state_bytes
        assert texts[name].num_reads == 2 * one[name].num_reads
    assert texts.kv_bytes == one.kv_bytes


def test_instructions_are_read_by_the_qformer_for_each_text() -> None:
    plain = count(small("t5"), prompts=[2], new_tokens=5)
    two = count(small("t5"), prompts=[2, 2], qformer_prompts=[4, 4], new_tokens=5)
    more_tokens = 2 * (2 * 4 * 32 + 4 * (7 * 7 - 3 * 3) * 2)
    assert two["qformer"].flops == 2 * (plain["qformer"].flops + more_tokens)
    assert two["projection"].flops == 2 * plain["projection"].flops
    assert two["vision"] == plain["vision"]


def test_quantised_layers_are_read_as_they_are_stored() -> None:
    work = count(small("opt"), prompts=[1], new_tokens=3, number_bytes=2, weight_bytes=1)
    assert work.step_bytes == 32 * 1 + 20 * 2


@pytest.mark.parametrize(
    ("name", "gflop"),
    [("opt-2.7b", 758), ("opt-6.7b", 1106), ("flan-t5-xl", 658), ("flan-t5-xxl", 1026)],
)
def test_the_work_of_the_real_models_is_known(name: str, gflop: float) -> None:
    config = json.loads((KNOWN / f"blip2-{name}.json").read_text())
    work = count(config, prompts=[1], new_tokens=12)
    assert work.flops / 1e9 == pytest.approx(gflop, rel=0.002)
    assert (work["vision"].flops + work["qformer"].flops) / 1e9 == pytest.approx(533.5, rel=0.001)


def test_what_a_configuration_leaves_out_has_the_defaults_of_transformers() -> None:
    config = json.loads((KNOWN / "blip2-opt-2.7b.json").read_text())
    text = {key: value for key, value in config["text_config"].items() if key != "word_embed_proj_dim"}
    assert count({"text_config": text}, prompts=[1], new_tokens=12) == count(config, prompts=[1], new_tokens=12)
    assert count({"text_config": text}, prompts=[1], new_tokens=12).step_bytes / 1e9 == pytest.approx(5.3, rel=0.01)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_torch_counts_the_same(tmp_path: Path, kind: str) -> None:
    folder = make_checkpoint(tmp_path, kind)
    network = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    network.eval().requires_grad_(False)
    work = count(json.loads((folder / "config.json").read_text()), prompts=[2], new_tokens=1)
    with FlopCounterMode(display=False) as encoder:
        network.get_image_features(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    width = 32
    inputs: dict[str, Any] = {"inputs_embeds": torch.zeros(1, 4 + 2, width)}
    inputs |= {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)} if kind == "t5" else {"logits_to_keep": 1}
    with FlopCounterMode(display=False) as decoder:
        network.language_model(**inputs)
    assert encoder.get_total_flops() == sum(flops(work)[name] for name in ("vision", "qformer", "projection"))
    masked = 4 * (6 * 6 - 6 * 7 // 2) * width * 2 if kind == "opt" else 0  # what no token may see is computed too
    assert decoder.get_total_flops() == flops(work)["prefill"] + masked


def test_a_phase_takes_as_long_as_the_slower_of_computing_and_reading() -> None:
    phase = Phase(name="steps", flops=1000, weight_bytes=300, num_reads=4, state_bytes=20)
    assert phase.seconds(flops_per_s=100, bytes_per_s=1000, rows=2) == 10
    assert phase.seconds(flops_per_s=10_000, bytes_per_s=100, rows=1) == 12.2
    assert phase.seconds(flops_per_s=10_000, bytes_per_s=100, rows=10) == 1.4


def test_the_limit_adds_the_phases_up_by_the_rows_that_each_has() -> None:
    work = count(small("opt"), prompts=[1], new_tokens=3)
    together = work.seconds(1e9, 1e6, images=8, texts=32)
    assert together == pytest.approx(
        sum(work[name].seconds(1e9, 1e6, 8) for name in ("vision", "qformer", "projection"))
        + sum(work[name].seconds(1e9, 1e6, 32) for name in ("prefill", "steps"))
    )
    assert together < work.seconds(1e9, 1e6, images=8, texts=1)
