"""The model that a training starts from: its kind, its image size and its image token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from blip2cap.errors import ModelError, UsageError
from blip2cap.options import ModelOptions
from blip2cap.train.model.base import load_base
from blip2cap.train.model.positions import resize_positions
from blip2cap.train.model.trainee import Trainee
from blip2cap.train.options.model import TuneOptions
from tests.training import read_base, text_batch


@pytest.mark.parametrize("kind", ["opt", "t5", "instructblip-t5", "instructblip-llama"])
def test_a_captioner_is_ready_for_training(checkpoints: Callable[[str], Path], kind: str) -> None:
    base = read_base(checkpoints(kind))
    assert base.family == kind.split("-")[0]
    assert (base.image_size, base.num_queries) == (28, 4)
    assert base.image_token_id == base.tokenizer.convert_tokens_to_ids("<image>")
    assert (base.qformer_tokenizer is not None) == kind.startswith("instructblip")
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}
    assert base.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


def test_models_of_the_package_are_bases() -> None:
    assert read_base("tiny").family == "opt"
    base = read_base("tiny-itm", "stage1")
    assert base.family == "matching"
    tune = TuneOptions()
    trainee = Trainee(base, stage="stage1", tune=tune, seed=0)
    assert trainee.stage1 is not None
    assert trainee.stage1.begin_id == base.tokenizer.convert_tokens_to_ids("[DEC]")


@pytest.mark.parametrize("stage", ["caption", "vqa", "stage2"])
def test_a_matching_model_has_no_texts_to_learn(checkpoints: Callable[[str], Path], stage: str) -> None:
    with pytest.raises(UsageError, match=f"family matching. {stage} trains a model with a language model, such as"):
        read_base(checkpoints("matching"), stage)


def test_stage_1_needs_a_matching_model(checkpoints: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match=r"family t5\. stage1 trains an image-text matching model, such as"):
        read_base(checkpoints("t5"), "stage1")


def test_instructblip_has_no_stage_2(checkpoints: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="InstructBLIP has no stage 2"):
        read_base(checkpoints("instructblip-t5"), "stage2")


def test_random_weights_are_a_base_too(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copy(checkpoints("opt") / "config.json", tmp_path)
    options = ModelOptions(name=str(tmp_path), random_weights=True)
    base = load_base(options, stage="caption", tune=TuneOptions(), seed=0)
    trainee = Trainee(base, stage="caption", tune=TuneOptions(), seed=0)
    assert trainee(**text_batch(base))["loss"] > 0
    trainee.save(tmp_path / "run")
    assert read_base(tmp_path / "run").tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert 1 in base.model.language_model.generation_config.eos_token_id, "texts of the live model would never end"


def set_image_token(folder: Path, value: int | None) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_token_index": value}))


def test_an_old_snapshot_gets_an_image_token(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints("opt"), tmp_path / "old"))
    set_image_token(folder, None)
    base = read_base(folder)
    assert base.image_token_id == base.model.config.image_token_index == 4
    assert base.checkpoint.config["image_token_index"] == 4


def test_an_image_token_without_an_embedding_is_an_error(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints("opt"), tmp_path / "old"))
    set_image_token(folder, 77)
    with pytest.raises(ModelError, match="its image token has the id 77, its language model 77 tokens"):
        read_base(folder)


@pytest.mark.parametrize("kind", ["opt", "instructblip-t5"])
def test_a_model_takes_larger_images_with_interpolated_positions(
    checkpoints: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    tune = TuneOptions(image_size=42)
    base = read_base(checkpoints(kind), tune=tune)
    assert base.image_size == base.checkpoint.config["vision_config"]["image_size"] == 42
    # transformers' own interpolation, of the model as it was
    before = read_base(checkpoints(kind)).model
    pixels = torch.randn(1, 3, 42, 42)
    with torch.no_grad():
        expected = before.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(base.model.vision_model(pixels).last_hidden_state, expected)
    Trainee(base, stage="caption", tune=tune, seed=0).save(tmp_path)
    again = read_base(tmp_path)
    assert again.image_size == 42
    with torch.no_grad():
        torch.testing.assert_close(again.model.vision_model(pixels).last_hidden_state, expected)


def test_the_same_image_size_changes_nothing(checkpoints: Callable[[str], Path]) -> None:
    model = read_base(checkpoints("opt")).model
    before = model.vision_model.embeddings.position_embedding
    resize_positions(model, 28)
    assert model.vision_model.embeddings.position_embedding is before


def test_an_image_size_is_a_multiple_of_the_patch_size(checkpoints: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="image_size 40: must be a multiple of the patch size of this model, 7: 35 or"):
        read_base(checkpoints("opt"), tune=TuneOptions(image_size=40))


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_stage_2_starts_from_the_qformer_of_stage_1(checkpoints: Callable[[str], Path], kind: str) -> None:
    tune = TuneOptions(qformer_from=str(checkpoints("matching")))
    model, source = (
        read_base(checkpoints(kind), "stage2", tune).model,
        read_base(checkpoints("matching"), "stage1").model,
    )
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        found, expected = (
            each.qformer(
                query_embeds=each.query_tokens.expand(2, -1, -1),
                encoder_hidden_states=each.vision_model(pixels).last_hidden_state,
            ).last_hidden_state
            for each in (model, source)
        )
    torch.testing.assert_close(found, expected)
    before, other_seed = read_base(checkpoints(kind)).model, read_base(checkpoints(kind), "stage2", tune, seed=1).model
    projections = [each.language_projection.weight for each in (model, before, other_seed)]
    assert not any(torch.equal(projections[0], other) for other in projections[1:])
    language_model = before.language_model.state_dict()
    for name, value in model.language_model.state_dict().items():
        assert torch.equal(value, language_model[name]), name


def test_a_qformer_that_does_not_fit_is_refused(checkpoints: Callable[[str], Path]) -> None:
    for name, message in (
        ("tiny-itm", r"does not fit --model: [0-9]+ tensors are missing or of another shape, such as"),
        ("tiny", "a model of the family opt. Expected a RUN of `train stage1`"),
    ):
        with pytest.raises(UsageError) as caught:
            read_base(checkpoints("opt"), "stage2", TuneOptions(qformer_from=name))
        assert caught.match(message.replace("--model", "model"))
    with pytest.raises(UsageError, match="not for instructblip, whose Q-Former reads instructions"):
        read_base(checkpoints("instructblip-t5"), tune=TuneOptions(qformer_from="tiny-itm"))
