"""Images through the model: order, pictures that come again, texts that take long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip2cap.decode.image import Pixels
from blip2cap.generate_options import GenerateOptions, TextOptions
from blip2cap.records import Generated, Prompt
from tests.commands import draw_scenes, names_below
from tests.fakes import FakeModel, FakeSession
from tests.test_engine_run import do
from tests.test_loop_guard import GUARD, LOOP, Speaker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures, the last four of them copies of the first."""
    folder = draw_scenes(tmp_path / "images", 6, size=(32, 24))
    for number, name in enumerate(("copy_a.png", "copy_b.png", "copy_c.png", "copy_d.png")):
        (folder / name).write_bytes((folder / f"{number // 3:03}.png").read_bytes())
    return folder


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_equal_pictures_are_encoded_and_asked_about_once(folder: Path, batch_size: int) -> None:
    model = FakeModel()
    rows, summary = do(folder, model, questions=("what?", "where?"), batch_size=batch_size)
    assert [row.file_name for row in rows[::2]] == names_below(folder)
    assert (model.num_encoded, len(model.prompts), summary.num_ok) == (6, 12, 20)
    texts = {row.file_name: row.text for row in rows[::2]}
    assert texts["copy_a.png"] == texts["copy_c.png"] == texts["000.png"] != texts["copy_d.png"] == texts["001.png"]


@pytest.mark.parametrize("num_copies", [1, 5])
def test_a_picture_that_comes_again_while_its_text_is_decoded_gets_that_text(tmp_path: Path, num_copies: int) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    for copy in range(num_copies):
        Image.new("RGB", (40, 20), "red").save(tmp_path / f"b{copy}.png")
    model = FakeModel(num_steps=lambda prompt: 20)
    rows, _ = do(tmp_path, model, batch_size=1)
    assert (model.num_encoded, len(model.prompts)) == (1, 1)
    assert [row.width for row in rows] == [20] + [40] * num_copies
    assert {row.text for row in rows} == {rows[0].text}


def test_the_same_picture_in_another_format_and_size_keeps_its_own_size(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "b.bmp")
    model = FakeModel()
    rows, _ = do(tmp_path, model)
    assert model.num_encoded == 1
    assert [(row.width, row.height) for row in rows] == [(40, 30), (20, 20)]


def test_equal_pictures_are_sampled_each_for_itself(folder: Path) -> None:
    model = FakeModel()
    do(folder, model, generate=GenerateOptions(temperature=1.0))
    assert len({prompt.name for prompt in model.prompts}) == len(model.prompts) == 10


def test_prompts_that_name_the_file_differ_for_equal_pictures(folder: Path) -> None:
    model = FakeModel()
    rows, _ = do(folder, model, prompt="{stem}:")
    assert [row.text.split(":")[0] for row in rows] == [name.removesuffix(".png") for name in names_below(folder)]
    assert len(model.prompts) == 10


def test_a_text_that_cannot_be_made_fails_for_every_image_that_shows_the_picture(folder: Path) -> None:
    told: list[str] = []
    rows, summary = do(
        folder, FakeModel(refuses=lambda prompt: True), on_failure=lambda ref, error: told.append(ref.file_name)
    )
    assert (summary.num_failed, told) == (10, names_below(folder))
    assert {row.width for row in rows} == {32}


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_rows_keep_the_order_of_the_images_when_texts_take_their_time(folder: Path, batch_size: int) -> None:
    rng = np.random.default_rng(batch_size)
    slow = FakeModel(num_steps=lambda prompt: int(rng.integers(1, 9)))
    rows, _ = do(folder, slow, questions=("what?", "where?"), batch_size=batch_size)
    assert rows == do(folder, FakeModel(), questions=("what?", "where?"))[0]


def test_images_are_encoded_only_as_texts_leave(folder: Path) -> None:
    """A text that never gets ready must not fill the memory with features."""
    most = 0

    class Watching(FakeModel):
        def encode(self, images: Sequence[Pixels]) -> list[str]:
            nonlocal most
            most = max(most, self.num_encoded + len(images) - len(done))
            return super().encode(images)

    done: list[str] = []
    rng = np.random.default_rng(0)
    model = Watching(num_steps=lambda prompt: int(rng.integers(1, 5)))
    sink_rows, _ = do(
        folder, model, batch_size=2, on_batch=lambda summary: done.extend(["x"] * (summary.num_images - len(done)))
    )
    assert len(sink_rows) == 10
    assert most <= 2 + 2 * 2 + 4


def test_a_session_has_as_many_prompts_to_choose_among_as_it_asks_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nums_waiting: list[int] = []
    advance = FakeSession.advance

    def watch(session: FakeSession) -> Any:
        nums_waiting.append(session.num_pending)
        return advance(session)

    monkeypatch.setattr(FakeSession, "advance", watch)
    slow = FakeModel(num_steps=lambda prompt: 3)
    do(folder, slow, batch_size=2)
    assert max(nums_waiting) == 2
    monkeypatch.setattr(FakeSession, "num_ahead", 4)
    do(folder, slow, batch_size=2)
    assert max(nums_waiting) == 6


def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mark every text of a Speaker as ended by the length limit."""

    def cut(**columns: Any) -> Generated:
        return Generated(**(columns | {"finish_reason": "length"}))

    monkeypatch.setattr("tests.test_loop_guard.Generated", cut)


def rules_of(folder: Path, says: str, *, again: str = "", **rules: Any) -> tuple[str, str, str | None]:
    """Return text, reason and flag of an image whose text is `says`, and `again` at the second try."""
    model = Speaker(lambda prompt, features, copy, blocked: again if blocked else says)
    row = do(folder, model, text=TextOptions(**rules), batch_size=16)[0][0]
    return row.text, row.finish_reason, row.flag


def test_a_text_that_was_cut_goes_back_to_its_last_sentence_and_one_that_ended_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rules_of(folder, "a cat. a do", trim_sentence=True) == ("a cat. a do", "stop", None)
    cut_off(monkeypatch)
    assert rules_of(folder, "a cat. a do", trim_sentence=True) == ("a cat.", "length", None)
    assert rules_of(folder, "a cat. a do") == ("a cat. a do", "length", None)


def test_the_guard_comes_before_trimming_and_that_before_stripping(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(monkeypatch)
    every = {"loop_guard": True, "trim_sentence": True, "strip": ("there is", "a photo of")}
    said = rules_of(folder, f"a dog. {LOOP}", again="There is a photo of a cow. a photo of a", **every)
    assert said == ("a cow.", "length", "retried")
    # Stripped first, it would begin with the point.
    assert rules_of(folder, "a photo of. a cow", trim_sentence=True, strip=("a photo of",))[0] == "a photo of."


def test_rules_apply_to_every_caption_of_an_image(folder: Path) -> None:
    model = Speaker(lambda prompt, features, copy, blocked: f"a photo of {copy}")
    generate = GenerateOptions(num_beams=2, num_captions=2)
    rows, _ = do(folder, model, generate=generate, text=TextOptions(strip=("a photo of",)))
    assert {row.texts for row in rows} == {("0", "1")}


def test_an_echo_of_the_question_is_told_from_one_of_the_prompt(folder: Path) -> None:
    def says(prompt: Prompt, features: str, copy: int, blocked: bool) -> str:
        return "a dog" if blocked else "what is this? a cat"

    for questions, flag in ((("what is this?",), "retried"), (None, "")):
        rows, _ = do(folder, Speaker(says), text=GUARD, prompt="what is this?", questions=questions)
        assert {row.flag for row in rows} == {flag}
