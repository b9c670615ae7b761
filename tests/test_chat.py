"""A conversation about an image, from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blip2cap import Captioner
from blip2cap.chat import Chat
from blip2cap.errors import ImageError, UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.blip2.model import Blip2
from blip2cap.records import Turn
from blip2cap.tiny.scenes import draw
from tests.fakes import FakeModel

SHORT = GenerateOptions(max_new_tokens=10)


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.load("tiny", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "scene.png"
    draw(3, (160, 120)).image.save(path)
    return path


def test_the_first_answer_is_that_of_ask(captioner: Captioner, image: Path) -> None:
    chat = captioner.chat(image, options=SHORT)
    answer = chat.ask("where is it?")
    assert answer
    assert [answer] == captioner.ask([image], "where is it?")
    assert chat.turns == [Turn(question="where is it?", answer=answer)]


def test_the_model_reads_earlier_turns_before_the_question(captioner: Captioner, image: Path) -> None:
    chat = captioner.chat(image, options=SHORT)
    first, second = chat.ask("is it day?"), chat.ask("where is it?")
    prompt = f"Question: is it day? Answer: {first}. Question: where is it? Answer:"
    assert [second] == captioner.caption([image], prompt=prompt, options=SHORT)


def test_the_image_is_encoded_once_for_all_turns(
    captioner: Captioner, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, num_images = Blip2.encode, list[int]()

    def count(model: Blip2, images: Any) -> Any:
        num_images.append(len(images))
        return encode(model, images)

    monkeypatch.setattr(Blip2, "encode", count)
    chat = captioner.chat(image, options=SHORT)
    for question in ("is it day?", "where is it?", "is it night?"):
        chat.ask(question)
    chat.reset()
    chat.ask("where is it?")
    assert num_images == [1]


def test_an_answer_is_told_while_it_grows(captioner: Captioner, image: Path) -> None:
    told: list[str] = []
    text = captioner.chat(image, options=SHORT).ask("what is this?", on_text=told.append)
    assert len(told) > 1
    assert all(text.startswith(each) for each in told)
    assert len(set(told)) == len(told)


def test_beams_tell_nothing_before_the_end(captioner: Captioner, image: Path) -> None:
    told: list[str] = []
    options = GenerateOptions(max_new_tokens=10, num_beams=3)
    assert captioner.chat(image, options=options).ask("what is this?", on_text=told.append)
    assert told == []


def test_another_image_begins_a_new_conversation_and_one_that_cannot_be_read_does_not(
    captioner: Captioner, image: Path
) -> None:
    other = image.with_name("other.png")
    draw(7, (160, 120)).image.save(other)
    chat = captioner.chat(image, options=SHORT)
    chat.ask("where is it?")
    with pytest.raises(ImageError, match=r"missing\.png: vanished"):
        chat.show(image.with_name("missing.png"))
    assert (len(chat.turns), chat.image_name) == (1, str(image))
    chat.show(other)
    assert (chat.turns, chat.image_name) == ([], str(other))
    assert [chat.ask("where is it?")] == captioner.ask([other], "where is it?")


def test_a_conversation_that_is_too_long_says_what_to_do(captioner: Captioner, image: Path) -> None:
    chat = captioner.chat(image, options=GenerateOptions(max_new_tokens=200))
    chat.turns.append(Turn(question="and so on " * 30, answer="yes"))
    with pytest.raises(UsageError, match=r"at most 256\. Forget the earlier turns \(/reset\), or lower max_new_tokens"):
        chat.ask("where is it?")
    assert len(chat.turns) == 1


def test_an_empty_question_is_refused(captioner: Captioner, image: Path) -> None:
    with pytest.raises(UsageError, match="question is empty"):
        captioner.chat(image).ask(" \n")


def test_a_model_that_answers_no_questions_is_refused(image: Path) -> None:
    model: Any = FakeModel()
    model.checkpoint = model.checkpoint.__class__(**{**_fields(model.checkpoint), "family": "matching"})
    with pytest.raises(UsageError, match="cannot chat"):
        Chat(model, image)


def test_several_answers_are_refused(captioner: Captioner, image: Path) -> None:
    with pytest.raises(UsageError, match="continues from one answer"):
        captioner.chat(image, options=GenerateOptions(num_beams=2, num_captions=2))


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}
