"""Conversations with vision-language models: as transformers writes and generates them, each image computed once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blip2cap.chat import Chat
from blip2cap.errors import UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.vlm.families import VLM_FAMILIES
from blip2cap.tiny.scenes import draw
from tests.test_vlm_parity import load_model, load_plain
from tests.vlm_checkpoints import VLM_KINDS

QUESTIONS = ("what is it?", "how many are there?", "describe the colour")
OPTIONS = GenerateOptions(max_new_tokens=8, min_new_tokens=3)
CHATS = [kind for kind in VLM_KINDS if VLM_FAMILIES[kind].has_chat]


@pytest.fixture(scope="module", params=CHATS)
def folder(request: pytest.FixtureRequest, vlm_checkpoints: Callable[[str], Path]) -> Path:
    return vlm_checkpoints(request.param)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return draw(5, (52, 40)).image


def by_the_book(folder: Path, picture: Image.Image, turns: list[tuple[str, str]], question: str) -> str:
    """Answer a question after others with transformers alone."""
    processor, network = load_plain(folder)
    said: list[dict[str, Any]] = []
    for user, assistant in (*turns, (question, "")):
        image = [] if said else [{"type": "image", "image": picture}]
        said.append({"role": "user", "content": [*image, {"type": "text", "text": user}]})
        said.append({"role": "assistant", "content": [{"type": "text", "text": assistant}]})
    inputs = processor.apply_chat_template(
        [said[:-1]], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        ids = network.generate(**inputs, max_new_tokens=8, min_new_tokens=3, do_sample=False)[0]
    new = ids[inputs["input_ids"].shape[1] :].tolist()
    ends = network.generation_config.eos_token_id
    text: str = processor.tokenizer.decode([token for token in new if token not in ends], skip_special_tokens=True)
    return text.strip()


def test_answers_equal_those_of_transformers_with_all_turns_written_anew(folder: Path, picture: Image.Image) -> None:
    chat = Chat(load_model(folder), picture, options=OPTIONS)
    turns: list[tuple[str, str]] = []
    for question in QUESTIONS:
        expected = by_the_book(folder, picture, turns, question)
        turns.append((question, chat.ask(question)))
        assert turns[-1][1] == expected
    chat.reset()
    assert chat.ask(QUESTIONS[1]) == by_the_book(folder, picture, [], QUESTIONS[1])


def test_an_image_is_computed_once_where_its_keys_and_values_can_be_kept(folder: Path, picture: Image.Image) -> None:
    model = load_model(folder)
    encoders = [
        each for name, each in model.network.named_modules() if name in ("model.vision_tower", "model.vision_model")
    ]
    calls: list[Any] = []
    chat = Chat(model, picture, options=OPTIONS)
    hook = encoders[0].register_forward_pre_hook(lambda encoder, given: calls.append(encoder))
    for question in QUESTIONS:
        chat.ask(question)
    chat.reset()
    chat.ask(QUESTIONS[0])
    hook.remove()
    assert len(calls) == (1 if VLM_FAMILIES[folder.name].shares_images else 4)


def test_an_answer_is_told_while_it_grows(folder: Path, picture: Image.Image) -> None:
    told: list[str] = []
    text = Chat(load_model(folder), picture, options=OPTIONS).ask(QUESTIONS[0], on_text=told.append)
    assert len(told) >= 3
    assert told[-1] == text


def test_samples_depend_on_the_seed_and_the_turn(folder: Path, picture: Image.Image) -> None:
    def talk(seed: int) -> list[str]:
        options = GenerateOptions(max_new_tokens=8, min_new_tokens=4, temperature=2.0, seed=seed)
        chat = Chat(load_model(folder), picture, options=options)
        return [chat.ask(question) for question in QUESTIONS[:2]]

    assert talk(1) == talk(1) != talk(2)


def test_a_family_without_a_chat_template_is_refused(
    vlm_checkpoints: Callable[[str], Path], picture: Image.Image
) -> None:
    with pytest.raises(UsageError, match=r"paligemma, which cannot chat\. It can: caption, vqa"):
        Chat(load_model(vlm_checkpoints("paligemma")), picture)


def test_a_question_with_a_special_token_is_refused_and_the_conversation_goes_on(
    vlm_checkpoints: Callable[[str], Path], picture: Image.Image
) -> None:
    chat = Chat(load_model(vlm_checkpoints("llava")), picture, options=OPTIONS)
    with pytest.raises(Exception, match="holds <image>, a special token"):
        chat.ask("what is <image>?")
    assert chat.ask(QUESTIONS[0]) == by_the_book(vlm_checkpoints("llava"), picture, [], QUESTIONS[0])


def test_after_an_answer_that_was_interrupted_the_next_one_is_right(folder: Path, picture: Image.Image) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(text: str) -> None:
        if len(texts) == 2:
            raise Interrupted
        texts.append(text)

    chat, texts = Chat(load_model(folder), picture, options=OPTIONS), list[str]()
    turns = [(QUESTIONS[0], chat.ask(QUESTIONS[0]))]
    with pytest.raises(Interrupted):
        chat.ask(QUESTIONS[1], on_text=interrupt)
    assert chat.ask(QUESTIONS[2]) == by_the_book(folder, picture, turns, QUESTIONS[2])


def test_a_sliding_window_keeps_no_cache(vlm_checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(vlm_checkpoints("llava"))
    assert model.keeps_cache
    config = model.network.config.get_text_config(decoder=True)
    config.sliding_window = 16
    try:
        assert not model.keeps_cache
    finally:
        del config.sliding_window
