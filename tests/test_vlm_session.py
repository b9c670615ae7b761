"""Batches of a vision-language model: similar lengths together, halves after out-of-memory, one prompt that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blip2cap.decode.image import Pixels
from blip2cap.errors import ImageError, ModelError, UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.checkpoint import find
from blip2cap.models.vlm.cache import RoomyLayer
from blip2cap.models.vlm.families import VLM_FAMILIES
from blip2cap.models.vlm.load import load
from blip2cap.models.vlm.model import Vlm
from blip2cap.models.vlm.prompts import Prompter
from blip2cap.options import ModelOptions
from blip2cap.records import Prompt
from tests.vlm_in_memory import KINDS_IN_MEMORY, make_in_memory

SHORT = GenerateOptions(max_new_tokens=4)


def load_kind(vlm_checkpoints: Callable[[str], Path], kind: str) -> Vlm:
    options = ModelOptions(name=str(vlm_checkpoints(kind)), device="cpu", dtype="float32")
    return load(find(options), options)


@pytest.fixture
def llava(vlm_checkpoints: Callable[[str], Path]) -> Vlm:
    return load_kind(vlm_checkpoints, "llava")


@pytest.fixture(scope="module")
def images() -> list[Pixels]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (30, 40, 3), dtype=np.uint8) for _ in range(6)]


def ask(*texts: str) -> list[Prompt]:
    return [Prompt(image=at, text=text, name=f"{at}") for at, text in enumerate(texts)]


@pytest.fixture
def batches(llava: Vlm, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of each batch that is made from here on."""
    made: list[list[str]] = []
    make = llava.prompter.inputs

    def watch(images: Sequence[Pixels], texts: Sequence[str]) -> dict[str, torch.Tensor]:
        made.append(list(texts))
        return make(images, texts)

    monkeypatch.setattr(llava.prompter, "inputs", watch)
    return made


def test_prompts_of_similar_length_are_in_one_batch(llava: Vlm, images: list[Pixels], batches: list[list[str]]) -> None:
    llava.generate(
        images,
        ask("what is it?", "how many words are there?", *["what is it?"] * 2, "how many words are there?"),
        SHORT,
        capacity=3,
    )
    assert [{len(text) for text in batch} for batch in batches] == [{len(batches[0][0])}, {len(batches[1][0])}]
    assert [len(batch) for batch in batches] == [3, 2]


def watch_network(
    model: Vlm, monkeypatch: pytest.MonkeyPatch, fits: Callable[[int, int], bool] = lambda rows, new: True
) -> list[tuple[int, int]]:
    """Return the list of (rows, new tokens) of all calls from here on; a call that does not fit is out of memory."""
    calls: list[tuple[int, int]] = []
    forward = model.network.forward

    def watch(**inputs: Any) -> Any:
        calls.append(tuple(inputs["input_ids"].shape))
        if not fits(*calls[-1]):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**inputs)

    monkeypatch.setattr(model.network, "forward", watch)
    return calls


@pytest.mark.parametrize("at_prompts", [True, False])
@pytest.mark.parametrize("temperature", [None, 1.0])
def test_after_out_of_memory_fewer_texts_are_tried_and_batches_stay_small(
    llava: Vlm, images: list[Pixels], monkeypatch: pytest.MonkeyPatch, at_prompts: bool, temperature: float | None
) -> None:
    prompts, options = ask(*["what is it?"] * 6), GenerateOptions(max_new_tokens=12, temperature=temperature)
    expected = llava.generate(images, prompts, options, capacity=6)
    calls = watch_network(llava, monkeypatch, lambda rows, new: rows <= 2 or (new > 1) != at_prompts)
    session = llava.start_texts(options, capacity=4)
    tickets = session.add(session.encode(images), prompts)
    results: dict[int, Any] = {}
    while session.num_pending:
        results.update(session.advance())
    assert [results[ticket] for ticket in tickets] == expected
    assert session.capacity == 2
    assert [rows for rows, _ in calls if rows > 2] == ([4] if at_prompts else [4, 4])


def test_texts_start_again_if_there_is_no_memory_to_put_them_together(
    llava: Vlm, images: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GenerateOptions(max_new_tokens=20)
    prompts = ask(*["what is it?"] * 4)
    expected = llava.generate(images, prompts, options)
    session = llava.start_texts(options, capacity=4)
    tickets = session.add(session.encode(images), prompts[:2])
    results = dict(session.advance())
    join = RoomyLayer.join
    num_joined = 0

    def second_layer_is_too_much(layer: RoomyLayer, other: RoomyLayer) -> None:
        nonlocal num_joined
        num_joined += 1
        if num_joined == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        join(layer, other)

    monkeypatch.setattr(RoomyLayer, "join", second_layer_is_too_much)
    tickets += session.add(images[2:4], [replace(each, image=at) for at, each in enumerate(prompts[2:])])
    while session.num_pending:
        results.update(session.advance())
    assert [results[ticket] for ticket in tickets] == expected
    assert (session.capacity < 4, num_joined) == (True, 2)


def test_a_prompt_that_does_not_fit_beside_running_texts_waits_for_them(
    llava: Vlm, images: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GenerateOptions(max_new_tokens=20)
    prompts = ask(*["what is it?"] * 3)
    expected = llava.generate(images, prompts, options)
    session = llava.start_texts(options, capacity=4)
    results: dict[int, Any] = {}
    tickets = session.add(session.encode(images), prompts[:2])
    results.update(session.advance())
    assert session.num_running
    calls = watch_network(llava, monkeypatch, lambda rows, new: new == 1 or not session.num_running)
    tickets += session.add(images[2:3], [replace(prompts[2], image=0)])
    while session.num_pending:
        results.update(session.advance())
    assert [results[ticket] for ticket in tickets] == expected
    assert len([new for _, new in calls if new > 1]) == 2


def test_a_text_that_does_not_fit_the_memory_fails_alone_and_as_many_as_before_run_on(
    llava: Vlm, images: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch_network(llava, monkeypatch, lambda rows, new: new < 30)
    options = GenerateOptions(max_new_tokens=4, temperature=1.0, num_captions=2)
    session = llava.start_texts(options, capacity=4)
    tickets = session.add(images, ask("it", "it is " * 30))
    results: dict[int, Any] = {}
    while session.num_pending:
        results.update(session.advance())
    results.update(session.advance())
    good, bad = (results[ticket] for ticket in tickets)
    assert session.capacity == 4
    assert isinstance(good, list)
    assert len(good) == 2
    assert isinstance(bad, ImageError)
    assert bad.code == "out_of_memory"


@pytest.mark.parametrize("text", ["what is <image> it?", "</s> what is it?", "it is " * 1200])
def test_a_prompt_that_the_model_does_not_take_fails_alone(llava: Vlm, images: list[Pixels], text: str) -> None:
    good, bad, other = llava.generate(images, ask("what is it?", text, "what is it?"), SHORT, capacity=4)
    assert isinstance(good, list)
    assert isinstance(other, list)
    assert isinstance(bad, ImageError)
    assert bad.code == "unsupported"
    assert ("special token" in bad.detail) == ("<" in text)


def test_an_image_that_the_processor_does_not_take_fails_alone(
    llava: Vlm, images: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = llava.prompter.inputs

    def no_black(images: Sequence[Pixels], texts: Sequence[str]) -> dict[str, torch.Tensor]:
        if not all(pixels_HWC.any() for pixels_HWC in images):
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return make(images, texts)

    monkeypatch.setattr(llava.prompter, "inputs", no_black)
    pictures = [images[0], np.zeros_like(images[0]), images[1]]
    good, bad, other = llava.generate(pictures, ask(*["what is it?"] * 3), SHORT, capacity=3)
    assert good != other
    assert isinstance(bad, ImageError)
    assert (bad.code, "aspect ratio" in bad.detail) == ("unsupported", True)


def test_options_and_prompts_that_can_never_be_are_refused_before_the_first_image(
    llava: Vlm, vlm_checkpoints: Callable[[str], Path]
) -> None:
    llava.check(GenerateOptions(max_new_tokens=2000, system="be brief"), ["what is it?"])
    with pytest.raises(UsageError, match="max_new_tokens 2048: this model takes at most 2048 tokens"):
        llava.check(GenerateOptions(max_new_tokens=2048))
    with pytest.raises(UsageError, match=r'prompt "a <image>": holds <image>, a special token of this model'):
        llava.check(SHORT, ["a <image>"])
    with pytest.raises(UsageError, match=r'prompt "</s>": holds </s>'):
        llava.check(GenerateOptions(system="</s>"))
    processor = llava.prompter.processor
    processor.chat_template = processor.chat_template.replace("for turn in messages", "for turn in messages[-1:]")
    with pytest.raises(UsageError, match="system: the chat template of this model writes no system's turn"):
        llava.check(GenerateOptions(system="be brief"))


def test_templates_that_take_plain_texts_and_place_the_image_themselves_are_used_so(
    llava: Vlm, images: list[Pixels]
) -> None:
    prompts = ask("what is it?")
    expected = llava.generate(images, prompts, SHORT)
    processor = llava.prompter.processor
    start = "{{ bos_token }}{% for turn in messages %}{{ turn['role'].upper() }}: <image>\n"
    end = "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    processor.chat_template = start + "{{ turn['content'] | trim }} " + end
    prompter = Prompter(processor, VLM_FAMILIES["llava"], llava.checkpoint)
    assert prompter.write("what is it?", None) == "<s>USER: <image>\nwhat is it? ASSISTANT:"
    llava.prompter = prompter
    assert llava.generate(images, prompts, SHORT) == expected
    processor.chat_template = "{% for turn in messages %}{{ turn['content'][1]['text'] }}{% endfor %}"
    with pytest.raises(ModelError, match="its chat template writes no prompt with one image"):
        Prompter(processor, VLM_FAMILIES["llava"], llava.checkpoint)


def test_places_in_texts_of_florence_are_kept_and_other_special_tokens_are_not(
    vlm_checkpoints: Callable[[str], Path],
) -> None:
    model = load_kind(vlm_checkpoints, "florence2")
    tokenizer = model.prompter.tokenizer
    ids = tokenizer("<s>it<loc_3><loc_7><pad>", add_special_tokens=False).input_ids
    assert model.read_text(ids).text == "it<loc_3><loc_7>"
    model.check(SHORT, ["<REGION_TO_CATEGORY><loc_1><loc_2><loc_3><loc_4>", "<OD>"])
    with pytest.raises(UsageError, match="holds <image>"):
        model.check(SHORT, ["<image>"])
    assert model.prompter.write("<OD>", None) == "<OD>"


@pytest.mark.parametrize("kind", [name for name, family in VLM_FAMILIES.items() if family.shares_images])
def test_an_image_is_computed_once_for_all_its_questions_with_the_same_texts(
    vlm_checkpoints: Callable[[str], Path], images: list[Pixels], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_in_memory(kind) if kind in KINDS_IN_MEMORY else load_kind(vlm_checkpoints, kind)
    images = [images[0], images[1][:16]]  # of different sizes, as some families count positions by these
    questions = ("what is it?", "how many words are there in this image?", "what colour?", "what colour is it in here?")
    prompts = [Prompt(image=at, text=text, name="") for text in questions for at in range(2)]
    prompts.append(Prompt(image=0, text="it?", name=""))  # the first prompts of the two have different lengths
    alone = [model.generate([images[each.image]], [replace(each, image=0)], SHORT)[0] for each in prompts]
    num_made: list[int] = []
    make = model.prompter.inputs

    def watch(images: Sequence[Pixels], texts: Sequence[str]) -> dict[str, torch.Tensor]:
        num_made.append(len(texts))
        return make(images, texts)

    monkeypatch.setattr(model.prompter, "inputs", watch)
    assert model.generate(images[:2], prompts, SHORT, capacity=9) == alone
    assert num_made == [2]
    beams = model.generate(images[:2], prompts, GenerateOptions(max_new_tokens=4, num_beams=2), capacity=9)
    assert all(isinstance(result, list) for result in beams)
    assert num_made == [2, 9]  # not for beams
    sampled = GenerateOptions(max_new_tokens=4, temperature=1.0, num_captions=3)
    assert len({str(each) for each in model.generate(images[:1], prompts[:1], sampled)[0]}) == 3  # type: ignore[union-attr]
    assert num_made == [2, 9, 1]


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_texts_that_have_ended_leave_the_batch_and_others_join(
    llava: Vlm, images: list[Pixels], monkeypatch: pytest.MonkeyPatch, temperature: float | None
) -> None:
    options = GenerateOptions(max_new_tokens=30, repetition_penalty=1.5, temperature=temperature)
    prompts = ask("what is it?", "how many?", "what are the words of it?", "it?", "how many are there?", "what?")
    alone = [llava.generate([images[each.image]], [replace(each, image=0)], options)[0] for each in prompts]
    lengths = [result[0].num_tokens for result in alone if isinstance(result, list)]
    assert min(lengths) < 8 < max(lengths), "texts that end together prove nothing"
    calls = watch_network(llava, monkeypatch)
    assert llava.generate(images, prompts, options, capacity=3) == alone
    assert max(rows for rows, _ in calls) == 3
    starts = [at for at, (_, new) in enumerate(calls) if new > 1]
    assert sum(calls[at][0] for at in starts) == 6
    assert any(calls[at][0] < calls[at + 1][0] for at in starts), "a text joins others"
    calls.clear()
    assert llava.generate(images, prompts, options, capacity=6) == alone
    assert [rows for rows, _ in calls] == sorted((rows for rows, _ in calls), reverse=True)
    assert calls[-1][0] < 6


def test_an_image_is_not_shared_if_the_tokens_after_it_depend_on_those_before(
    llava: Vlm, images: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [Prompt(image=0, text=text, name="") for text in ("what is it?", "what colour?")]
    expected = llava.generate(images, prompts, SHORT)
    monkeypatch.setattr(llava.prompter, "ids_after_image", lambda text: [5, 6, 7])
    assert llava.generate(images, prompts, SHORT) == expected
