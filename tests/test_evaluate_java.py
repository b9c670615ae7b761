"""METEOR beside pycocoevalcap's, and what is said where Java or pycocoevalcap is missing, or a program fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.meteor.meteor import Meteor  # type: ignore[import-untyped]

from blip2cap.errors import UsageError
from blip2cap.evaluate import java
from blip2cap.evaluate.captions import score_captions

CANDIDATES = ["a dog on a mat", "", "zzz", "two cats sitting on the old sofa", "a man rides a bike", "a crème brûlée"]
REFERENCES = [
    ["a dog on a mat", "a cat"],
    ["a bird"],
    ["a person walks", "someone"],
    ["two cats sit on a couch", "the cats are sleeping on an old sofa"],
    ["a person is riding a bicycle down the street", "a man on a bike"],
    ["crème brûlée on a plate"],
]
STATISTICS = "7 7 3 3 4 4 3 3 0 0 0 0 0 0 0 0 0 0 0 0 1 7 7"
"""What METEOR finds for two equal texts of seven words."""


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """Make a program `java` of a few lines."""

    def make(script: str) -> None:
        path = tmp_path / "java"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return make


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pycocoevalcap leaves pipes open
@pytest.mark.skipif(shutil.which("java") is None, reason="takes a Java runtime")
def test_meteor_is_that_of_pycocoevalcap():
    (metric,) = score_captions(CANDIDATES, REFERENCES, metrics=("METEOR",))
    theirs, ours = dict(enumerate(REFERENCES)), {number: [text] for number, text in enumerate(CANDIDATES)}
    value, scores = Meteor().compute_score(theirs, ours)
    assert metric.value == pytest.approx(value, abs=1e-9)
    assert metric.per_item == pytest.approx(np.array(scores), abs=1e-9)


def test_meteor_of_equal_texts_is_1_and_a_sample_adds_them_up(fake_java):
    fake_java(f'cat > /dev/null; echo "{STATISTICS}"; echo "{" ".join(["2", "12", *["0"] * 21])}"')
    (metric,) = score_captions(["a", "b"], [["a"], ["c"]], metrics=("METEOR",))
    assert metric.per_item == pytest.approx(np.array([1, 0]))
    assert metric.resample(np.array([0, 0])) == pytest.approx(1)
    assert 0 < metric.value < 1
    assert metric.resample(np.array([1, 0])) == pytest.approx(metric.value)


def test_a_program_that_fails_is_quoted(fake_java):
    fake_java("echo 'Error: no memory' >&2; exit 1")
    with pytest.raises(UsageError, match=r"METEOR: its program failed: Error: no memory. Leave METEOR out"):
        score_captions(["a"], [["a"]], metrics=("METEOR",))


def test_spice_without_its_models_is_an_error(monkeypatch, fake_java):
    def no_network() -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("pycocoevalcap.spice.spice.get_stanford_models", no_network)
    fake_java("exit 1")
    with pytest.raises(UsageError, match="SPICE: its program failed: Network is unreachable"):
        score_captions(["a"], [["a"]], metrics=("SPICE",))


@pytest.mark.parametrize("name", java.JAVA_METRICS)
def test_without_java_the_message_says_so(name, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"no `java` on the PATH. Install a Java runtime"):
        score_captions(["a"], [["a"]], metrics=(name,))


def test_without_pycocoevalcap_the_message_says_what_to_install(monkeypatch, fake_java):
    fake_java("exit 1")
    monkeypatch.setattr(java, "find_spec", lambda name: None)
    assert str(java.why_no_java()).endswith("pip install 'blip2cap[java]'.")


def test_with_both_nothing_is_missing(fake_java):
    fake_java("exit 1")
    assert java.why_no_java() is None
