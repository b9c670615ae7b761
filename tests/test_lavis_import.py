"""A checkpoint of LAVIS becomes a folder that gives the same logits, or is refused with all names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip2cap.errors import ModelError
from blip2cap.lavis.run import import_lavis
from blip2cap.models.base import text_type
from blip2cap.options import ModelOptions
from tests.checkpoints import KINDS
from tests.hub_imitations import REPOSITORIES, imitate
from tests.lavis import lavis_names, lavis_state, read_network, retrain, save, without_frozen

ALL_KINDS = (*KINDS, "matching")
SOME_AND_MORE = [
    kind if kind in ("opt", "t5", "matching") else pytest.param(kind, marks=pytest.mark.long) for kind in ALL_KINDS
]
"""Kinds for tests in which InstructBLIP goes the way of the others."""
VISION, LANGUAGE = "vision_model.", "language_model."
OLD_FORMS = {
    "opt": "Salesforce/blip2-opt-2.7b",
    "t5": "Salesforce/blip2-flan-t5-xl",
    "instructblip-t5": "Salesforce/instructblip-flan-t5-xl",
    "instructblip-llama": "Salesforce/instructblip-vicuna-7b",
    "matching": "Salesforce/blip2-itm-vit-g",
}
"""Repositories on the hub of which there are imitations."""


def convert(path: Path, base: Path, out: Path) -> list[str]:
    """Import a file; return what is said."""
    said: list[str] = []
    import_lavis(path, ModelOptions(name=str(base)), out, say=said.append, quiet=False)
    return said


def refusal(path: Path, base: Path) -> str:
    out = path.with_suffix(".out")
    with pytest.raises(ModelError) as caught:
        convert(path, base, out)
    left = [*path.parent.glob(f"*{out.name}*")]
    assert left == []
    return caught.value.message


def outputs(network: Any, *, image_size: int | None = None) -> Tensor:
    """Return the logits, or the scores, of fixed noise and tokens."""
    config = network.config
    if hasattr(network, "language_model") and config.image_token_index is None:
        config.image_token_index = 4  # old repositories name none
    side = image_size or config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(5))
    words = torch.arange(5, 11).repeat(2, 1)
    if not hasattr(network, "language_model"):
        placeholders = (
            torch.zeros(2, config.num_query_tokens, dtype=torch.long) if config.image_token_index else words[:, :0]
        )
        given = {"input_ids": torch.cat([placeholders, words], 1)}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        with torch.no_grad():
            return torch.cat(
                [
                    network(pixels, **given, use_image_text_matching_head=matching).logits_per_image.flatten()
                    for matching in (True, False)
                ]
            )
    images = torch.full((2, config.num_query_tokens), config.image_token_index)
    given = {"input_ids": torch.cat([images, words], 1)}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    if text_type(config.to_dict()) == "t5":
        given["labels"] = words
    if config.model_type == "instructblip":
        given |= {"qformer_input_ids": words[:, :4], "qformer_attention_mask": torch.ones(2, 4, dtype=torch.long)}
    with torch.no_grad():
        logits: Tensor = network(pixel_values=pixels, **given).logits
    return logits


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_parameter_of_lavis_is_in_the_synthetic_checkpoints(
    kind: str, checkpoints: Callable[[str], Path]
) -> None:
    network = read_network(checkpoints(kind))
    retrain(network)
    assert set(lavis_state(network, kind)) == lavis_names(kind)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_an_imported_folder_gives_the_logits_of_the_network_it_was_made_from(
    kind: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    base = checkpoints(kind)
    network = read_network(base)
    before = outputs(network)
    retrain(network)
    said = convert(save(tmp_path / "checkpoint_30.pth", lavis_state(network, kind)), base, tmp_path / "out")
    assert not torch.equal(outputs(network), before)
    assert torch.equal(outputs(read_network(tmp_path / "out")), outputs(network))
    assert not any("taken from" in line for line in said)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in base.iterdir()}


@pytest.mark.parametrize("kind", SOME_AND_MORE)
def test_a_base_in_the_form_of_old_repositories_serves_as_well(kind: str, tmp_path: Path) -> None:
    """Sharded, without an image token; the output layer of Flan-T5 is not that of its embeddings."""
    base = imitate(tmp_path / "base", REPOSITORIES[OLD_FORMS[kind]])
    network = read_network(base)
    retrain(network)
    state = lavis_state(network, kind)
    assert set(state) == lavis_names(kind, num_layers=1)
    convert(save(tmp_path / "checkpoint_best.pth", state), base, tmp_path / "out")
    imported = read_network(tmp_path / "out")
    assert torch.equal(outputs(imported), outputs(network))
    if kind.endswith("t5"):
        assert not torch.equal(imported.language_model.lm_head.weight, imported.language_model.shared.weight)


@pytest.mark.parametrize("kind", SOME_AND_MORE)
@pytest.mark.parametrize("vision", [True, pytest.param(False, marks=pytest.mark.long)])
def test_what_lavis_has_frozen_is_that_of_the_base(
    kind: str, vision: bool, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    network = read_network(checkpoints(kind))
    retrain(network, frozen=(LANGUAGE, *([VISION] if vision else [])))
    state = lavis_state(network, kind)
    trained = without_frozen(state, kind, vision=vision)
    assert len(trained) < len(state) or (kind == "matching" and not vision)
    said = convert(save(tmp_path / "checkpoint_0.pth", trained), checkpoints(kind), tmp_path / "out")
    assert torch.equal(outputs(read_network(tmp_path / "out")), outputs(network))
    frozen = [*(["vision encoder"] if vision else []), *(["language model"] if kind != "matching" else [])]
    if frozen:
        parts = " and ".join(frozen)
        assert said[0] == f"{parts}: not in the checkpoint, taken from {checkpoints(kind)}"


def test_a_base_that_holds_the_embeddings_under_both_names_keeps_both(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(checkpoints("opt"), tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    names = ("language_model.model.decoder.embed_tokens.weight", "language_model.lm_head.weight")
    weights[names[1]] = weights[names[0]].clone()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    network = read_network(base)
    retrain(network)
    convert(save(tmp_path / "checkpoint_30.pth", lavis_state(network, "opt")), base, tmp_path / "out")
    imported = load_file(tmp_path / "out" / "model.safetensors")
    expected = network.language_model.lm_head.weight
    assert all(torch.equal(imported[name], expected) for name in names)


def test_words_that_lavis_does_not_have_are_those_of_the_base(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    network = read_network(checkpoints("opt"))
    old = network.language_model.lm_head.weight.detach().clone()
    retrain(network)
    state = lavis_state(network, "opt")
    for name in ("opt_model.lm_head.weight", "opt_model.model.decoder.embed_tokens.weight"):
        state[name] = state[name][:70]
    convert(save(tmp_path / "checkpoint_30.pth", state), checkpoints("opt"), tmp_path / "out")
    words = read_network(tmp_path / "out").language_model.lm_head.weight
    assert torch.equal(words[:70], network.language_model.lm_head.weight[:70])
    assert torch.equal(words[70:], old[70:])
    assert len(words) == len(old) > 70


def test_frozen_weights_of_16_bits_are_found_equal_to_those_of_the_base(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """LAVIS keeps Flan-T5 in bfloat16, and saves the second name of its embeddings though they are frozen."""
    network = read_network(checkpoints("t5"))
    retrain(network, frozen=(LANGUAGE,))
    state = without_frozen(lavis_state(network, "t5"), "t5", vision=False)
    halves = {name: tensor.bfloat16() if name.startswith("t5_model.") else tensor for name, tensor in state.items()}
    assert len(halves) > len([name for name in halves if not name.startswith("t5_model.")])
    convert(save(tmp_path / "checkpoint_30.pth", halves), checkpoints("t5"), tmp_path / "out")
    assert torch.equal(outputs(read_network(tmp_path / "out")), outputs(network))


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_a_base_with_another_language_model_is_refused(
    kind: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    network = read_network(checkpoints(kind))
    retrain(network)
    path = save(tmp_path / "checkpoint_30.pth", without_frozen(lavis_state(network, kind), kind))
    message = refusal(path, checkpoints(kind))
    assert "was trained with another language model than that of --base" in message


def test_images_of_another_size_come_with_their_position_embeddings(tmp_path: Path) -> None:
    base = imitate(tmp_path / "base", REPOSITORIES["Salesforce/blip2-opt-2.7b"])
    network = read_network(imitate(tmp_path / "large", REPOSITORIES["Salesforce/blip2-opt-2.7b-coco"]))
    retrain(network)
    said = convert(save(tmp_path / "checkpoint_4.pth", lavis_state(network, "opt")), base, tmp_path / "out")
    imported = read_network(tmp_path / "out")
    assert imported.config.vision_config.image_size == 42
    assert torch.equal(outputs(imported), outputs(network))
    size = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["size"]
    assert size == {"height": 42, "width": 42}
    assert said[-2] == f"images of 42 pixels; {base} takes 28"


@pytest.mark.parametrize("kind", SOME_AND_MORE)
def test_a_frozen_vision_encoder_gets_the_size_of_images_in_the_configuration(
    kind: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """Compared with the interpolation of transformers while the model runs."""
    network = read_network(checkpoints(kind))
    state = without_frozen(lavis_state(network, kind), kind)
    convert(save(tmp_path / "checkpoint_4.pth", state, image_size=42), checkpoints(kind), tmp_path / "out")
    imported = read_network(tmp_path / "out")
    pixels = torch.randn(1, 3, 42, 42)
    with torch.no_grad():
        expected = network.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(imported.vision_model(pixels).last_hidden_state, expected)
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert processor["image_processor"]["size"] == {"height": 42, "width": 42}


def test_pixels_of_an_incomplete_patch_belong_to_the_size_of_images(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    state = lavis_state(read_network(checkpoints("opt")), "opt")
    convert(save(tmp_path / "checkpoint.pth", state, image_size=30), checkpoints("opt"), tmp_path / "out")
    assert read_network(tmp_path / "out").config.vision_config.image_size == 30
