"""Command lines print, return and leave behind what the transcripts say, byte for byte."""

from __future__ import annotations

import pytest

from tests.transcripts import GOLDEN, SCENARIOS, transcript

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_command_line_does_what_its_transcript_says(name: str) -> None:
    assert transcript(SCENARIOS[name]) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_every_transcript_has_a_scenario() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(SCENARIOS)
