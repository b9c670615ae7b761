"""Addresses, prices, and options that have no effect."""

from __future__ import annotations

import dataclasses

import pytest

from blip2cap.errors import UsageError
from blip2cap.models.checkpoint import find
from blip2cap.options import ModelOptions
from blip2cap.server_options import ServerOptions
from tests.commands import invoke


@pytest.mark.parametrize(
    "given", ["http://localhost:8000/v1", "http://localhost:8000/v1/", "http://localhost:8000/v1//"]
)
def test_an_address_has_no_slash_at_its_end(given):
    assert ServerOptions(base_url=given).base_url == "http://localhost:8000/v1"


@pytest.mark.parametrize(
    "given",
    ["", "localhost:8000/v1", "ftp://x/v1", "http://", "http://x:port/", "http://x:99999/", "http://a b/", "http://ü/"],
)
def test_what_is_no_address_is_refused(given):
    with pytest.raises(UsageError, match="base_url: not an address"):
        ServerOptions(base_url=given)


@pytest.mark.parametrize("given", ["http://user:secret@x/v1", "https://x/v1?key=secret", "https://x/v1#secret"])
def test_an_address_with_a_secret_is_refused_without_repeating_it(given):
    with pytest.raises(UsageError, match="OPENAI_API_KEY") as caught:
        ServerOptions(base_url=given)
    assert "secret" not in caught.value.message


def test_prices_belong_together_and_make_a_cost():
    with pytest.raises(UsageError, match="belong together"):
        ServerOptions(price_input=1.0)
    with pytest.raises(UsageError, match="must be 0 or more"):
        ServerOptions(price_input=-1.0, price_output=0.0)
    assert ServerOptions(price_input=2.0, price_output=8.0).cost(1_000_000, 500_000) == 6.0
    assert ServerOptions().cost(1, 1) is None


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_time_limit_is_a_number_of_seconds(seconds):
    with pytest.raises(UsageError, match="request_timeout_s"):
        ServerOptions(request_timeout_s=seconds)


@pytest.mark.parametrize(
    "changes",
    [
        *({"base_url": "http://x/v1"}, {"concurrency": 2}, {"request_timeout_s": 3.0}),
        {"price_input": 1.0, "price_output": 1.0},
    ],
)
def test_without_a_server_its_options_have_no_effect(changes):
    with pytest.raises(UsageError, match="has no effect with model tiny"):
        ModelOptions(name="tiny", server=ServerOptions(**changes))


def test_a_model_of_a_server_is_found_without_asking_it():
    options = ModelOptions(name="openai:org/model:7b", server=ServerOptions(base_url="http://192.0.2.1/v1"))
    checkpoint = find(options)
    assert (checkpoint.family, checkpoint.name, checkpoint.server) == (
        "openai",
        "openai:org/model:7b",
        "http://192.0.2.1/v1",
    )


def test_its_address_and_its_name_are_needed(scenes, here):
    with pytest.raises(UsageError, match="base_url http://localhost"):
        find(ModelOptions(name="openai:x"))
    with pytest.raises(UsageError, match="after the colon"):
        ModelOptions(name="openai:")
    result = invoke("caption", scenes, "-m", "openai:x")
    assert (result.exit_code, "--base-url" in result.stderr) == (2, True)


@pytest.mark.parametrize("command", [("match", "--text", "a"), ("embed",), ("bench",)])
def test_other_commands_say_that_they_need_a_model_here(command, scenes, here):
    inputs = () if command[0] == "bench" else (scenes,)
    result = invoke(*command, *inputs, "-m", "openai:x")
    assert result.exit_code in (2, 4)
    assert "openai:x" in result.stderr


def test_no_option_holds_a_key():
    assert not any("key" in field.name for field in dataclasses.fields(ServerOptions))
