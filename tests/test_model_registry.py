"""A checkpoint is recognised, prompted and loaded by the family that its config names, and by nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from blip2cap.decode.inputs import ResizedInput, SquareInput
from blip2cap.errors import ModelError, UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.jobs.job import Job
from blip2cap.models.base import Checkpoint, Family, Model
from blip2cap.models.checkpoint import find
from blip2cap.models.registry import FAMILIES, load, recognise
from blip2cap.options import ModelOptions, OutputOptions, SourceOptions
from blip2cap.prompts import Template
from blip2cap.tasks.caption import Caption
from tests.fakes import FakeModel


def config_of(model_type: str, text_type: str | None = None, **more: object) -> dict[str, object]:
    return {
        "model_type": model_type,
        **({} if text_type is None else {"text_config": {"model_type": text_type}}),
        **more,
    }


@pytest.mark.parametrize(
    ("config", "family"),
    [
        (config_of("blip-2"), "opt"),
        (config_of("blip-2", "opt"), "opt"),
        (config_of("blip-2", "t5"), "t5"),
        (config_of("instructblip", "t5"), "instructblip"),
        (config_of("instructblip", "llama"), "instructblip"),
    ],
)
def test_families_are_recognised_by_their_config(config: dict[str, object], family: str) -> None:
    assert recognise("some/model", config).name == family


@pytest.mark.parametrize("config", [{}, config_of("mllama"), config_of("instructblip"), config_of("blip-2", "llama")])
def test_an_unknown_config_is_refused_with_the_known_ones(config: dict[str, object]) -> None:
    with pytest.raises(
        ModelError, match=r"Expected blip-2 \(opt, t5\), instructblip \(t5, llama\), llava, .*florence2\. `model tiny`"
    ):
        recognise("some/model", config)


MATCHING, CAPTIONING = "Blip2ForImageTextRetrieval", "Blip2ForConditionalGeneration"


def test_models_that_match_and_that_caption_share_a_type_and_are_told_apart_by_their_class() -> None:
    assert recognise("some/model", config_of("blip-2", "opt", architectures=[MATCHING])).name == "matching"
    assert recognise("some/model", config_of("blip-2", architectures=[MATCHING])).name == "matching"
    assert recognise("some/model", config_of("blip-2", "opt", architectures=[CAPTIONING])).name == "opt"


@pytest.mark.parametrize(
    ("family", "task", "fitting"),
    [
        ("opt", "match", "Salesforce/blip2-itm-vit-g or tiny-itm"),
        ("matching", "caption", "Salesforce/blip2-opt-2.7b or tiny"),
        ("matching", "vqa", "Salesforce/blip2-opt-2.7b or tiny"),
    ],
)
def test_a_task_that_a_family_cannot_do_is_refused_with_models_that_can(family: str, task: str, fitting: str) -> None:
    checkpoint = Checkpoint(name="some/model", folder=Path(), commit="", family=family, config={})
    with pytest.raises(
        UsageError, match=rf"family {family}, which cannot {task}\. It can: .* To {task}, use {fitting}\."
    ):
        FAMILIES[family].check_task(task, checkpoint)
    FAMILIES[family].check_task("embed", checkpoint)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_has_prompts_that_are_templates(family: Family) -> None:
    assert Template(family.caption_prompt).fill("cat.jpg") == family.caption_prompt
    filled = Template(family.vqa_template, question=True).fill("cat.jpg", "what is it?")
    assert "what is it?" in filled
    assert "{" not in filled


@pytest.fixture
def stub_family(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Checkpoint, ModelOptions]]:
    """A family for the length of a test; returns what its loader is called with."""
    loaded: list[tuple[Checkpoint, ModelOptions]] = []

    def load_stub(checkpoint: Checkpoint, options: ModelOptions) -> Model:
        loaded.append((checkpoint, options))
        return FakeModel()

    family = Family(
        name="stub",
        model_type="stub",
        caption_prompt="Describe:",
        vqa_template="{question}",
        image_input=lambda checkpoint, options: SquareInput(checkpoint.config["side"]),
        load=load_stub,
    )
    monkeypatch.setitem(FAMILIES, "stub", family)
    return loaded


def test_a_family_that_is_added_is_found_and_loaded_by_its_own_loader(
    tmp_path: Path, stub_family: list[tuple[Checkpoint, ModelOptions]]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "stub", "side": 8}))
    (tmp_path / "model.safetensors").touch()
    options = ModelOptions(name=str(tmp_path))
    checkpoint = find(options)
    assert checkpoint.family == "stub"
    assert FAMILIES[checkpoint.family].image_input(checkpoint, options) == SquareInput(8)
    assert isinstance(load(checkpoint, options), FakeModel)
    assert stub_family == [(checkpoint, options)]
    assert find(ModelOptions(name="tiny")).family == "opt"


def test_a_family_that_is_added_is_named_where_another_is_refused(stub_family: object) -> None:
    with pytest.raises(ModelError, match=r"Expected blip-2 \(opt, t5\), .*, stub\."):
        recognise("some/model", config_of("mllama"))


def test_a_loaded_model_knows_its_checkpoint() -> None:
    options = ModelOptions(name="tiny", device="cpu")
    checkpoint = find(options)
    model = load(checkpoint, options)
    assert model.checkpoint == checkpoint
    assert model.fallback_reason == ""
    assert model.image_input == FAMILIES[checkpoint.family].image_input(checkpoint, options)


def test_a_number_of_pixels_is_refused_where_all_images_have_one_size_and_a_setting_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UsageError, match=r"max_pixels 500: model tiny is of the family opt, .* one size\. Leave it out"
    ):
        find(ModelOptions(name="tiny", max_pixels=500))
    family = Family(
        name="any-size",
        model_type="any-size",
        any_image_size=True,
        image_input=lambda checkpoint, options: ResizedInput(family.max_pixels(options) or 0),
        load=lambda checkpoint, options: FakeModel(),
    )
    monkeypatch.setitem(FAMILIES, "any-size", family)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "any-size"}))
    (tmp_path / "model.safetensors").touch()
    for max_pixels, expected in ((None, 1024 * 1024), (500, 500)):
        options = ModelOptions(name=str(tmp_path), max_pixels=max_pixels)
        checkpoint = find(options)
        assert family.image_input(checkpoint, options) == ResizedInput(expected)
        job = Job(task=Caption(template=""), source=SourceOptions(inputs=("x",)), output=OutputOptions(), model=options)
        assert job.model_settings(checkpoint)["max_pixels"] == expected
    tiny = find(ModelOptions(name="tiny"))
    assert "max_pixels" not in replace(job, model=ModelOptions(name="tiny")).model_settings(tiny)
    with pytest.raises(UsageError, match="max_pixels 0: must be 1 or more"):
        ModelOptions(max_pixels=0)


def test_a_system_turn_is_refused_by_families_without_one_and_a_setting_where_it_is_given() -> None:
    checkpoint = Checkpoint(name="some/model", folder=Path(), commit="", family="opt", config={})
    task = Caption(template="", generate=GenerateOptions(system="You are brief."))
    with pytest.raises(UsageError, match=r"family opt, which has no system's turn\. Leave it out"):
        task.for_checkpoint(checkpoint, FAMILIES["opt"])
    assert task.for_checkpoint(checkpoint, replace(FAMILIES["opt"], has_system_turn=True)) == task
    assert task.settings()["system"] == "You are brief."
    assert "system" not in Caption(template="").settings()
