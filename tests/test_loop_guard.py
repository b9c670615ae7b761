"""Texts with a fault are generated once more and flagged, whatever else is in the batch."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from blip2cap.captioner import Captioner
from blip2cap.decode.image import Pixels
from blip2cap.errors import ImageError
from blip2cap.generate_options import GenerateOptions, TextOptions
from blip2cap.records import Generated, Prompt
from blip2cap.rows import Row
from blip2cap.tasks.loop_guard import GuardedSession, second_options
from tests.checkpoints import make_checkpoint
from tests.commands import draw_scenes
from tests.fakes import FakeModel, FakeSession
from tests.test_engine_run import do
from tests.test_model_parity import load_model

GUARD = TextOptions(loop_guard=True)
LOOP, ECHO = "a cat a cat a cat", "a photo of"
Says = Callable[[Prompt, str, int, bool], "str | ImageError"]
"""Called with a prompt, its features, the number of the copy and whether repetition is blocked; returns a text."""


class Speaker(FakeModel):
    """A model that generates the given texts."""

    def __init__(self, says: Says, **settings: Any) -> None:
        super().__init__(**settings)
        self.says = says
        self.opened: list[SpeakersTexts] = []

    def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> FakeSession:
        self.opened.append(SpeakersTexts(self, options, capacity or 16))
        return self.opened[-1]


class SpeakersTexts(FakeSession):
    def _say(self, prompt: Prompt, features: str) -> list[Generated] | ImageError:
        result = super()._say(prompt, features)
        if isinstance(result, ImageError):
            return result
        assert isinstance(self.model, Speaker)
        said = [self.model.says(prompt, features, copy, self.blocks) for copy in range(len(result))]
        errors = [each for each in said if isinstance(each, ImageError)]
        return errors[0] if errors else [Generated(text=str(text), finish_reason="stop", num_tokens=9) for text in said]

    @property
    def blocks(self) -> bool:
        return self.options.no_repeat_ngram_size == 3


def is_bad(features: str, *, share: int = 3) -> bool:
    """Return whether an image gets bad texts; about one in `share` does."""
    return crc32(features.encode()) % share == 0


def stammers(prompt: Prompt, features: str, copy: int, blocked: bool) -> str:
    return f"{LOOP} {features}" if is_bad(features) and not blocked else f"{prompt.text} {features} {blocked}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_scenes(tmp_path_factory.mktemp("scenes"), 20, size=(32, 24))


def one_row(tmp_path: Path, says: Says, **settings: Any) -> Row:
    rows, _ = do(draw_scenes(tmp_path / "one", 1), Speaker(says), **({"text": GUARD} | settings))
    return rows[0]


def test_a_text_that_loops_is_made_once_more_with_repetition_blocked_and_the_others_stay(folder: Path) -> None:
    model = Speaker(stammers)
    rows, summary = do(folder, model, text=GUARD)
    bad = [row for row in rows if row.flag]
    assert 2 < len(bad) < 18
    assert {row.flag for row in bad} == {"retried"}
    assert all(row.text.endswith("True") for row in bad)
    assert all(row.text.endswith("False") for row in rows if not row.flag)
    first, second = model.opened
    assert (first.num_added, second.num_added, model.num_encoded) == (20, len(bad), 20)
    assert summary.flags == {"retried": len(bad)}


def test_without_the_guard_no_row_has_a_flag_and_nothing_is_made_again(folder: Path) -> None:
    model = Speaker(stammers)
    rows, summary = do(folder, model)
    assert {row.flag for row in rows} == {None}
    assert any(row.text.startswith(LOOP) for row in rows)
    assert (len(model.opened), summary.flags) == (1, {})


def test_a_second_text_side_is_not_opened_as_long_as_all_is_well(folder: Path) -> None:
    model = Speaker(lambda prompt, features, copy, blocked: features)
    rows, _ = do(folder, model, text=GUARD)
    assert ({row.flag for row in rows}, len(model.opened)) == ({""}, 1)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 100])
def test_texts_and_flags_do_not_depend_on_the_batch_size_or_on_who_is_ready_first(
    folder: Path, batch_size: int
) -> None:
    rng = np.random.default_rng(batch_size)
    slow = Speaker(stammers, num_steps=lambda prompt: int(rng.integers(1, 6)))
    questions = ("what is it?", "where is it?")
    rows, _ = do(folder, slow, text=GUARD, questions=questions, batch_size=batch_size)
    assert rows == do(folder, Speaker(stammers), text=GUARD, questions=questions)[0]


@pytest.mark.parametrize(
    ("first", "second", "text", "flag"),
    [
        (LOOP, "a dog", "a dog", "retried"),
        (LOOP, "a dog a dog a dog", LOOP, "repetition"),
        (LOOP, "a cat a cat a cat in a hat", "a cat a cat a cat in a hat", "repetition"),
        (LOOP, ECHO, LOOP, "repetition"),
        (ECHO, LOOP, LOOP, "repetition"),
        (ECHO, "", ECHO, "prompt_echo"),
        (ECHO, "a dog", "a dog", "retried"),
        ("", "a dog", "a dog", "retried"),
        ("", ECHO, ECHO, "prompt_echo"),
        ("", "", "", "empty"),
    ],
)
def test_the_better_text_is_kept_and_the_flag_is_about_it(
    tmp_path: Path, first: str, second: str, text: str, flag: str
) -> None:
    row = one_row(tmp_path, lambda prompt, features, copy, blocked: second if blocked else first, prompt=ECHO)
    assert (row.text, row.flag, row.status) == (text, flag, "ok")


def test_a_second_try_that_fails_leaves_the_first_text_with_its_flag(tmp_path: Path) -> None:
    full = ImageError("out_of_memory", "full")
    row = one_row(tmp_path, lambda prompt, features, copy, blocked: full if blocked else LOOP)
    assert (row.text, row.flag, row.status, row.error) == (LOOP, "repetition", "ok", "")


def test_what_fails_the_first_time_is_not_tried_again_and_has_an_empty_flag(tmp_path: Path) -> None:
    told: list[bool] = []

    def says(prompt: Prompt, features: str, copy: int, blocked: bool) -> ImageError:
        told.append(blocked)
        return ImageError("out_of_memory", "full")

    row = one_row(tmp_path, says)
    assert (row.text, row.flag, row.error, told) == ("", "", "out_of_memory", [False])


@pytest.mark.parametrize(
    ("generate", "said", "num_opened", "flag"),
    [
        (GenerateOptions(no_repeat_ngram_size=3), LOOP, 1, "repetition"),
        (GenerateOptions(no_repeat_ngram_size=2), ECHO, 1, "prompt_echo"),
        (GenerateOptions(no_repeat_ngram_size=3), "", 2, "empty"),
        (GenerateOptions(no_repeat_ngram_size=3, min_new_tokens=1), "", 1, "empty"),
        (GenerateOptions(min_new_tokens=1), "", 1, "empty"),
        (GenerateOptions(no_repeat_ngram_size=4), LOOP, 2, "repetition"),
    ],
)
def test_what_the_run_blocks_already_is_only_flagged(
    tmp_path: Path, generate: GenerateOptions, said: str, num_opened: int, flag: str
) -> None:
    model = Speaker(lambda prompt, features, copy, blocked: said)
    rows, _ = do(draw_scenes(tmp_path, 1), model, text=GUARD, generate=generate, prompt=ECHO)
    assert (rows[0].flag, len(model.opened)) == (flag, num_opened)


def test_a_second_try_changes_nothing_but_the_blocking() -> None:
    options = GenerateOptions(temperature=0.7, top_k=5, num_captions=3, seed=4, max_new_tokens=9)
    second = second_options(options)
    assert (second.no_repeat_ngram_size, second.min_new_tokens) == (3, 1)
    assert second == second_options(second) == second_options(GenerateOptions(**{**_as_dict(options)}))
    assert {name for name, value in _as_dict(options).items() if getattr(second, name) != value} == {
        "no_repeat_ngram_size",
        "min_new_tokens",
    }


def _as_dict(options: GenerateOptions) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def test_of_several_samples_the_bad_ones_give_way_to_those_of_their_place(tmp_path: Path) -> None:
    row = one_row(
        tmp_path,
        lambda prompt, features, copy, blocked: LOOP if copy == 1 and not blocked else f"{copy} {blocked}",
        generate=GenerateOptions(temperature=1.0, num_captions=3),
    )
    assert (row.text, row.texts, row.flag) == ("0 False", ("0 False", "1 True", "2 False"), "retried")


def test_of_several_beams_the_better_list_stays_whole(tmp_path: Path) -> None:
    def says(prompt: Prompt, features: str, copy: int, blocked: bool) -> str:
        return LOOP if copy == 2 and not blocked else f"{copy} {blocked}"

    beams = GenerateOptions(num_beams=3, num_captions=3)
    row = one_row(tmp_path, says, generate=beams)
    assert (row.texts, row.flag) == (("0 True", "1 True", "2 True"), "retried")


def test_the_flag_of_several_texts_is_the_worst(tmp_path: Path) -> None:
    def says(prompt: Prompt, features: str, copy: int, blocked: bool) -> str:
        return ["a dog", LOOP, LOOP if not blocked else "a cow"][copy]

    row = one_row(tmp_path, says, generate=GenerateOptions(temperature=1.0, num_captions=3))
    assert (row.texts, row.flag) == (("a dog", LOOP, "a cow"), "repetition")


def test_equal_pictures_share_the_second_text_and_the_flag(folder: Path, tmp_path: Path) -> None:
    model = Speaker(lambda prompt, features, copy, blocked: "a dog" if blocked else LOOP)
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes((folder / f"{number % 2:03}.png").read_bytes())
    rows, _ = do(tmp_path, model, text=GUARD, batch_size=3)
    assert {(row.text, row.flag) for row in rows} == {("a dog", "retried")}
    assert [texts.num_added for texts in model.opened] == [2, 2]


def guarded(capacity: int) -> tuple[GuardedSession, Speaker]:
    """Open a guarded session: `long` texts take many steps, all others one; texts about `bad` images loop."""

    def says(prompt: Prompt, features: str, copy: int, blocked: bool) -> str:
        return LOOP if features == "bad" and not blocked else "a dog"

    model = Speaker(says, num_steps=lambda prompt: 1_000 if prompt.text == "long" else 1)
    return GuardedSession(lambda options: model.start_texts(options, capacity=capacity), GenerateOptions()), model


def ask(texts: GuardedSession, features: str, *prompts: str) -> list[int]:
    return texts.add([features], [Prompt(image=0, text=prompt, name="") for prompt in prompts])


def test_second_tries_begin_together_when_they_are_an_eighth_of_the_texts_at_once() -> None:
    texts, model = guarded(32)
    ask(texts, "good", "long")
    for number in range(1, 4):
        ask(texts, "bad", "")
        assert (texts.advance(), len(model.opened), texts.num_pending) == ([], 1, 1 + number)
    ask(texts, "bad", "")
    done = texts.advance()
    assert [result[0].flag for _, result in done if not isinstance(result, ImageError)] == ["retried"] * 4
    assert texts.num_pending == 1


def test_second_tries_begin_at_once_when_nothing_else_is_to_be_done() -> None:
    texts, _ = guarded(32)
    (ticket,) = ask(texts, "bad", "")
    assert [done for done, _ in texts.advance()] == [ticket]


def test_a_lone_second_try_does_not_wait_for_ever() -> None:
    """Other texts continue meanwhile; rows behind it wait."""
    texts, _ = guarded(16)
    ask(texts, "good", "long")
    (bad,) = ask(texts, "bad", "")
    num_others = 0
    while (done := texts.advance()) is not None and bad not in dict(done):
        num_others += len(done)
        assert num_others <= 2 * 16
        ask(texts, "good", "")
    assert num_others >= 2 * 16 - 1


def test_a_lone_second_try_joins_those_that_run() -> None:
    texts, model = guarded(32)
    (first,) = ask(texts, "bad", "")
    model.num_steps = lambda prompt: 1_000 if prompt.text == "long" else 2
    assert texts.advance() == []
    model.num_steps = lambda prompt: 1_000 if prompt.text == "long" else 1
    ask(texts, "good", "long")
    (joining,) = ask(texts, "bad", "")
    assert {ticket for ticket, _ in texts.advance()} == {first, joining}


def test_the_idle_second_session_is_freed_when_memory_runs_out() -> None:
    texts, model = guarded(8)
    ask(texts, "bad", "")
    texts.advance()
    second = weakref.ref(model.opened.pop())
    texts.advance()
    assert second() is not None
    model.opened[0].capacity = 4
    texts.advance()
    gc.collect()
    assert second() is None


def test_features_go_with_the_text_that_needed_them(folder: Path) -> None:
    """Texts that wait for a second try keep their features; a model with only bad texts must not fill the memory."""
    kept: list[weakref.ref[Any]] = []
    most = 0

    class Features(list[str]):
        """A list with weak references, so that a test sees when it is freed."""

        def __getitem__(self, index: Any) -> Any:
            return Features(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)

    class Holding(Speaker):
        def encode(self, images: Sequence[Pixels]) -> list[str]:
            nonlocal most
            features = Features(super().encode(images))
            kept.append(weakref.ref(features))
            most = max(most, sum(reference() is not None for reference in kept))
            return features

        def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> FakeSession:
            rng = np.random.default_rng(0)
            self.num_steps = lambda prompt: int(rng.integers(1, 5))
            return super().start_texts(options, capacity=capacity)

    model = Holding(lambda prompt, features, copy, blocked: LOOP)
    rows, _ = do(folder, model, text=GUARD, batch_size=2)
    assert {row.flag for row in rows} == {"repetition"}
    assert most <= 3
    gc.collect()
    assert not any(reference() for reference in kept)


@pytest.fixture(
    scope="module",
    params=["opt", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("t5", "instructblip-llama"))],
)
def captioner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    return Captioner(load_model(make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)))


@pytest.mark.parametrize(
    "options",
    [
        GenerateOptions(max_new_tokens=20),
        pytest.param(GenerateOptions(max_new_tokens=20, num_beams=3), marks=pytest.mark.long),
        pytest.param(GenerateOptions(max_new_tokens=20, temperature=0.2, num_captions=2), marks=pytest.mark.long),
    ],
    ids=["greedy", "beams", "sampled"],
)
def test_texts_of_a_real_model_that_loop_are_made_again_the_same_in_any_batch(
    captioner: Captioner, folder: Path, options: GenerateOptions
) -> None:
    """A model with random weights loops often."""
    plain = list(captioner.caption_folder(folder, options=options))
    rows = []
    for batch_size in (1, 4):
        one = Captioner(captioner.model, batch_size=batch_size)
        rows.append(list(one.caption_folder(folder, options=options, text_options=GUARD)))
    assert rows[0] == rows[1]
    assert {row.status for row in rows[0]} == {"ok"}
    flags = [row.flag for row in rows[0]]
    assert "retried" in flags
    again = second_options(options)
    by_itself = list(captioner.caption_folder(folder, options=again))
    for row, first, second in zip(rows[0], plain, by_itself, strict=True):
        assert row.text in (first.text, second.text)
        assert row.flag or (row.text, row.texts) == (first.text, first.texts)
        if row.flag == "retried" and options.num_captions == 1:
            assert row.text == second.text != first.text
