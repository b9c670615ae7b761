"""A model whose texts are all empty, or all the same, is noticed; what is rightly the same is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blip2cap.engine.first_texts import FirstTexts
from blip2cap.errors import ImageError
from blip2cap.records import Generated
from tests.commands import draw_scenes
from tests.test_engine_run import do
from tests.test_loop_guard import Says, Speaker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_scenes(tmp_path_factory.mktemp("scenes"), 12, size=(32, 24))


def warnings_of(folder: Path, says: Says, *, questions: tuple[str, ...] | None = None) -> list[str]:
    said: list[str] = []
    do(folder, Speaker(says), questions=questions, say=said.append)
    return said


@pytest.mark.parametrize("questions", [None, ("what?", "where?")])
def test_texts_that_are_all_empty_are_said_once(folder: Path, questions: tuple[str, ...] | None) -> None:
    (said,) = warnings_of(folder, lambda *_: "", questions=questions)
    assert f"the first {12 * len(questions or 'a')} texts are all empty" in said
    assert "damaged" in said


def test_captions_that_are_all_the_same_are_said_once_with_the_caption(folder: Path) -> None:
    (said,) = warnings_of(folder, lambda *_: "the the the the")
    assert 'the first 12 texts are all the same: "the the the the"' in said


def test_texts_that_differ_and_answers_that_do_not_are_right(folder: Path) -> None:
    assert warnings_of(folder, lambda prompt, features, *_: features) == []
    assert warnings_of(folder, lambda *_: "yes", questions=("is it a picture?",)) == []


def test_copies_of_one_picture_may_have_the_same_caption(tmp_path: Path) -> None:
    (original,) = draw_scenes(tmp_path / "images", 1).iterdir()
    for number in range(20):
        (original.parent / f"copy{number}.png").write_bytes(original.read_bytes())
    assert warnings_of(original.parent, lambda *_: "a picture of something or other") == []


def text(text: str, num_tokens: int = 9) -> list[Generated]:
    return [Generated(text=text, num_tokens=num_tokens, finish_reason="stop")]


def said_of(*results: list[Generated]) -> list[str]:
    said: list[str] = []
    first = FirstTexts(said.append)
    for result in results:
        first.add(result, None)
    first.finish()
    return said


def test_it_is_said_after_a_hundred_texts_and_never_again() -> None:
    (said,) = said_of(*[text("")] * 1000)
    assert "the first 100 texts" in said
    assert said_of(*[text("a long one")] * 99, text("another"), *[text("a long one")] * 99) == []


def test_few_texts_say_nothing_about_a_model_unless_they_are_empty() -> None:
    assert said_of(*[text("a long one")] * 9) == said_of(*[text("")] * 2) == said_of() == []
    assert len(said_of(*[text("")] * 3)) == 1


def test_short_captions_may_be_the_same_as_answers_are() -> None:
    assert said_of(*[text("no", num_tokens=1)] * 50) == []


def test_images_that_fail_are_no_texts(folder: Path) -> None:
    results: Iterator[str | ImageError] = iter([ImageError("corrupt", "x")] * 3 + [""] * 9)
    (said,) = warnings_of(folder, lambda *_: next(results))
    assert "the first 9 texts are all empty" in said
