"""Requests and answers as bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blip2cap.generate_options import GenerateOptions
from blip2cap.models.server.chat_api import (
    Dialect,
    NoAnswerError,
    error_code,
    model_names,
    parse_answer,
    quoted,
    request_body,
    seed_of,
    words_of,
)
from tests.fault_server import answer

URL = b"data:image/png;base64,AAAA"


def body(options: GenerateOptions, *, seed: int | None = None, dialect: Dialect | None = None, text: str = "x") -> Any:
    return json.loads(request_body("m", URL, text, options, seed=seed, dialect=dialect or Dialect()))


def test_a_request_is_one_turn_of_image_and_text():
    asked = body(GenerateOptions(max_new_tokens=9), text='say "cheese" \\ ü')
    assert asked == {
        "model": "m",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": URL.decode()}},
                    {"type": "text", "text": 'say "cheese" \\ ü'},
                ],
            }
        ],
        "max_tokens": 9,
        "temperature": 0.0,
    }


def test_sampling_is_sent_and_a_seed_where_the_server_takes_one():
    options = GenerateOptions(temperature=0.5, top_p=0.9)
    assert {"temperature": 0.5, "top_p": 0.9, "seed": 3}.items() <= body(options, seed=3).items()
    assert "seed" not in body(options, seed=3, dialect=Dialect(takes_seed=False))


def test_a_system_turn_comes_first():
    system, user = body(GenerateOptions(system="Be brief."))["messages"]
    assert (system, user["role"]) == ({"role": "system", "content": "Be brief."}, "user")


def test_seeds_differ_by_image_and_copy_and_are_the_same_again():
    seeds = {seed_of(*each) for each in ((0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0))}
    assert len(seeds) == 4
    assert all(0 <= seed < 1 << 31 for seed in seeds)
    assert seed_of(0, "a", 0) in seeds


def test_an_answer_is_read():
    found = parse_answer(json.dumps(answer(" a cat \n", "length")).encode())
    assert (found.text, found.finish_reason, found.num_tokens, found.num_prompt_tokens) == ("a cat", "length", 7, 100)


def test_an_answer_without_counts_and_reasons_is_one():
    found = parse_answer(b'{"choices": [{"message": {"content": null}}], "usage": null}')
    assert (found.text, found.finish_reason, found.num_tokens) == ("", "stop", 0)


@pytest.mark.parametrize("bad", [b"", b"[]", b"\xff", b'{"choices": []}', b'{"choices": [{}]}', b'{"error": "x"}'])
def test_anything_else_is_no_answer(bad):
    with pytest.raises(NoAnswerError):
        parse_answer(bad)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"error": {"message": "no such\nmodel", "code": 1}}, "no such model"),
        ({"error": "busy"}, "busy"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"message": "old vLLM", "object": "error"}, "old vLLM"),
        ({"detail": [{"loc": ["body"]}]}, '{"detail": [{"loc": ["body"]}]}'),
        (["x"], '["x"]'),
    ],
)
def test_the_words_of_an_error_are_found(content, words):
    assert words_of(json.dumps(content).encode()) == words


def test_words_that_are_no_json_are_quoted_up_to_a_limit():
    assert words_of(b"<html>\n Bad \xff Gateway") == "<html> Bad \N{REPLACEMENT CHARACTER} Gateway"
    assert quoted("x" * 500) == "x" * 300 + " ..."


def test_codes_and_names():
    assert error_code(b'{"error": {"code": "insufficient_quota"}}') == "insufficient_quota"
    assert [error_code(each) for each in (b"", b"[]", b'{"error": 1}', b"{}")] == [""] * 4
    assert model_names(b'{"data": [{"id": "a"}, {"id": "b"}]}') == ["a", "b"]
    assert [model_names(each) for each in (b"", b"[]", b'{"data": [1]}', b"{}")] == [[]] * 4
