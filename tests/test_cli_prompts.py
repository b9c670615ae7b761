"""Prompts by purpose: listed, taken by name, and written to the manifest as texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blip2cap.prompt_library import PACKAGED, read_library
from blip2cap.prompts import Template
from tests.commands import TINY, invoke

PURPOSES = {"alt-text", "short-caption", "long-caption", "tags-sdxl", "tags-flux", "product-text"}


@pytest.fixture(autouse=True)
def own(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's library, which does not exist yet."""
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / ".config"))
    path = Path(json.loads(invoke("prompts", "--json").stdout)["own"])
    assert path.is_relative_to(here)
    path.parent.mkdir(parents=True)
    return path


def test_the_prompts_of_the_package_are_listed_with_their_purpose() -> None:
    facts = json.loads(invoke("prompts", "--json").stdout)
    assert {each["name"] for each in facts["prompts"]} == PURPOSES
    shown = invoke("prompts").stdout
    for each in facts["prompts"]:
        assert f"@{each['name']}: {each['purpose']}\n  {each['text']}\n" in shown
        assert Template(each["text"]).fill("cat.jpg") == each["text"]


def test_a_prompt_is_taken_by_name_and_the_manifest_holds_its_text(scenes: Path, here: Path, own: Path) -> None:
    own.write_text('[mine]\ntext = "a photo of"\n[short-caption]\npurpose = "shorter"\ntext = "a drawing of"\n')
    assert invoke("caption", scenes, *TINY, "--limit", "1", "--prompt", "@mine").exit_code == 0
    settings = json.loads(invoke("status", "captions.jsonl", "--json").stdout)["settings"]
    assert settings["prompt"] == "a photo of"
    own.unlink()
    assert invoke("caption", scenes, *TINY, "--limit", "1", "--prompt", "a photo of").exit_code == 0
    own.write_text('[short-caption]\ntext = "a drawing of"\n')
    library = read_library(own)
    assert library.keys() == PURPOSES
    assert library["short-caption"].text == "a drawing of"
    assert library["alt-text"].path == PACKAGED


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("@alt-txt", "--prompt @alt-txt: no such prompt. Did you mean @alt-text? `blip2cap prompts` lists them."),
        ("@", "--prompt @: no such prompt. `blip2cap prompts` lists them."),
    ],
)
def test_an_unknown_name_is_an_error_with_close_ones(scenes: Path, given: str, message: str) -> None:
    result = invoke("caption", scenes, *TINY, "--prompt", given)
    assert (result.exit_code, result.stderr) == (2, f"blip2cap: {message}\n")


@pytest.mark.parametrize(
    "content", ["text = 'x'", "[a]\npurpose = 'x'", "[a]\ntext = 1", "[a]\ntext = 'x'\nb = 1", "["]
)
def test_a_damaged_library_is_an_error_that_names_its_file(scenes: Path, own: Path, content: str) -> None:
    own.write_text(content)
    for command in (("prompts",), ("caption", scenes, *TINY, "--prompt", "@alt-text")):
        result = invoke(*command)
        assert result.exit_code == 2
        assert str(own) in result.stderr.replace("\n", "")
