"""Collators make what the classes of transformers are trained on: a batch has the loss of its examples."""

import pytest
import torch
from transformers import AutoProcessor

from blip2cap.errors import ModelError, UsageError
from blip2cap.models.blip2.model import NETWORK_CLASSES
from blip2cap.train.data.collate import IGNORED, Collator, Stage1Collator, end_id, make_collator
from blip2cap.train.data.render import render
from blip2cap.train.options.data import DataOptions
from tests.checkpoints import KINDS
from tests.training_data import make_sample, read_base

SAMPLES = (
    make_sample("w1 w2 w3", "what is it?", seed=1),
    make_sample("w4", "is w5 a photo of w6 w7 w8?", seed=2),
    make_sample("w9 w10 w11 w12 w13 w14", None, seed=3),
)


def read_network(folder, family):
    return NETWORK_CLASSES[family].from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_batch_is_the_mean_over_the_tokens_of_its_examples(checkpoints, kind):
    base = read_base(checkpoints(kind))
    network, collate = read_network(checkpoints(kind), base.checkpoint.family), Collator(base)
    with torch.inference_mode():
        together = float(network(**collate(SAMPLES)).loss)
        losses = [(float(network(**batch).loss), batch) for batch in (collate([each]) for each in SAMPLES)]
    num_tokens = [int((batch["labels"] != IGNORED).sum()) for _, batch in losses]
    assert num_tokens == [4, 2, 7]  # with the end of each
    alone = sum(loss * number for (loss, _), number in zip(losses, num_tokens, strict=True)) / sum(num_tokens)
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_depend_on_the_image_of_their_own_row_alone(checkpoints, kind):
    base = read_base(checkpoints(kind))
    network, batch = read_network(checkpoints(kind), base.checkpoint.family), Collator(base)(SAMPLES)
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    changed["pixel_values"][1] = -changed["pixel_values"][1]
    with torch.inference_mode():
        before, after = network(**batch).logits, network(**changed).logits
    difference = (before - after).abs().amax(dim=(1, 2))
    assert difference[1] > 1e-3
    assert difference[0] == difference[2] == 0


@pytest.mark.parametrize(
    ("kind", "prompt"), [("opt", "Question: what is it? Answer:"), ("instructblip-llama", "what is it?")]
)
def test_the_prompt_of_training_is_the_input_of_a_run(checkpoints, kind, prompt):
    """Without the target, a row is what transformers' own processor makes of the same prompt."""
    base = read_base(checkpoints(kind))
    processed = AutoProcessor.from_pretrained(checkpoints(kind)).tokenizer(prompt).input_ids
    batch = Collator(base)(SAMPLES[:1])
    given = batch["input_ids"][0][batch["labels"][0] == IGNORED].tolist()
    assert given == [base.image_token_id] * 4 + processed


def test_t5_reads_the_prompt_with_its_end_and_writes_the_target_with_its_end(checkpoints):
    base = read_base(checkpoints("t5"))
    batch = Collator(base)(SAMPLES[:2])
    words = base.tokenizer.convert_ids_to_tokens
    assert words(batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()) == [
        *["<image>"] * 4,
        *["Question", ":", "what", "is", "it", "?", "Short", "<unk>", ":", "</s>"],
    ]
    assert words(batch["labels"][0].tolist()) == ["w1", "w2", "w3", "</s>"]
    assert batch["labels"][1].tolist()[2:] == [IGNORED] * 2


def test_instructblip_reads_the_bare_prompt_in_its_qformer_too(checkpoints):
    base = read_base(checkpoints("instructblip-t5"))
    assert base.qformer_tokenizer is not None
    batch = Collator(base)(SAMPLES)
    rows = [
        base.qformer_tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["qformer_input_ids"], batch["qformer_attention_mask"], strict=True)
    ]
    assert rows[0] == "what is it ? </s>"
    assert rows[2].endswith("</s>")
    assert "image" not in rows[2]


def test_a_truncated_target_has_no_end(checkpoints):
    base = read_base(checkpoints("opt"))
    batch = Collator(base, max_tokens=3)(SAMPLES)
    assert [render(base, batch, number).split(" | ")[1] for number in range(3)] == ["w1 w2 w3", "w4 </s>", "w9 w10 w11"]


def test_an_example_is_shown_as_the_model_sees_it(checkpoints):
    for kind, expected in (
        ("opt", "[4 image tokens] <s> Question : what is it ? Answer : | w1 w2 w3 </s>"),
        ("t5", "[4 image tokens] Question : what is it ? Short <unk> : </s> | w1 w2 w3 </s>"),
        ("instructblip-llama", "[4 image tokens] <s> what is it ? | w1 w2 w3 </s> (Q-Former: what is it ? </s>)"),
    ):
        base = read_base(checkpoints(kind))
        assert render(base, Collator(base)(SAMPLES), 0) == expected


def test_a_prompt_and_a_template_replace_those_of_the_family(checkpoints):
    base = read_base(checkpoints("opt"))
    batch = Collator(base, prompt="a photo of", template="{question}")(SAMPLES)
    assert render(base, batch, 0).startswith("[4 image tokens] <s> what is it ? | ")
    assert render(base, batch, 2).startswith("[4 image tokens] <s> a photo of | ")
    with pytest.raises(UsageError, match="no field"):
        Collator(base, prompt="{stem}")


def test_a_tokenizer_that_merges_prompt_and_text_is_refused(checkpoints):
    base = read_base(checkpoints("opt"))
    base.tokenizer.backend_tokenizer.pre_tokenizer = None  # all of a text is one token
    with pytest.raises(ModelError, match="reads the prompt"):
        Collator(base, prompt="w1")(SAMPLES[2:])


def test_the_tiny_models_tokens_continue_the_prompt_with_a_space():
    base = read_base("tiny")
    batch = Collator(base)([make_sample("yes", "is it day?", size=64)])
    assert base.tokenizer.convert_ids_to_tokens(batch["labels"][0].tolist()[-2:]) == ["Ġyes", "</s>"]
    assert render(base, batch, 0) == f"[{base.num_queries} image tokens] </s>Question: is it day? Answer: | yes</s>"


def test_opt_ends_texts_with_the_token_that_its_configuration_names(checkpoints):
    base = read_base(checkpoints("opt"))
    base.checkpoint.config["text_config"]["eos_token_id"] = 50118
    assert end_id(base) == 50118
    base = read_base(checkpoints("instructblip-llama"))
    base.checkpoint.config["text_config"]["eos_token_id"] = 50118
    assert end_id(base) == 1  # that of the tokenizer


@pytest.mark.parametrize("kind", ["matching", "matching-placeholders"])
def test_texts_of_the_first_stage_have_no_placeholders_and_keep_their_end(checkpoints, kind):
    base = read_base(checkpoints(kind))
    samples = [make_sample("w1 w2 w3 w4", image=7), make_sample("a photo", image=7), make_sample("w9", image=2)]
    batch = Stage1Collator(base, max_tokens=5)(samples)
    assert batch["pixel_values"].shape == (3, 3, 28, 28)
    assert batch["image_ids"].tolist() == [7, 7, 2]
    assert [render(base, batch, number) for number in range(3)] == [
        "[image 7] | <s> w1 w2 w3 </s>",
        "[image 7] | <s> a photo </s>",
        "[image 2] | <s> w9 </s>",
    ]
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 4, 3]


def test_pixels_are_normalised_as_transformers_does(checkpoints):
    processor = AutoProcessor.from_pretrained(checkpoints("opt"))
    base = read_base(checkpoints("opt"))
    expected = processor.image_processor(SAMPLES[0].pixels, return_tensors="pt")["pixel_values"]
    assert torch.allclose(Collator(base)(SAMPLES[:1])["pixel_values"], expected, atol=1e-5)


def test_the_collator_of_a_model_follows_the_options(checkpoints):
    options = DataOptions(prompt="a photo of", max_tokens=3)
    base = read_base(checkpoints("opt"))
    line = render(base, make_collator(base, options)(SAMPLES[2:]), 0)
    assert line == "[4 image tokens] <s> a photo of | w9 w10 w11"
    base = read_base(checkpoints("matching"))
    assert render(base, make_collator(base, options)(SAMPLES[2:]), 0) == "[image 0] | <s> w9 </s>"
