"""What README and the other pages say is so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blip2cap.cli import app
from blip2cap.records import FAILURES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "sample_images" / "README.md"]
GUIDES = README + "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("inputs.md", "outputs.md"))
"""What shows commands."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_readme_names_the_two_commands_of_a_fresh_clone_first() -> None:
    assert blocks("")[0].split("\n") == ["make demo", "make test", ""]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_python_of_readme_runs_and_prints_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("python")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert lines[0] == "['two orange flowers next to a white umbrella in a field']"
    assert lines[1] == "['white']"
    assert len(lines) == 2 + 14


def test_options_that_pages_use_exist() -> None:
    helps = {
        command: CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        for command in ("caption", "vqa", "show", "export", "status")
    }
    for command, rest in re.findall(r"blip2cap (caption|vqa|show|export|status)\b([^\n|#`]*)", GUIDES):
        for flag in re.findall(r"(?<=\s)-{1,2}[a-z0-9][a-z-]*", rest):
            assert re.search(rf"{flag}\b", helps[command]), f"{command} {flag}"


def test_output_shown_in_readme_is_what_the_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = [json.loads(line) for line in re.findall(r"^\{\"file_name.*\}$", README, flags=re.MULTILINE)]
    assert shown
    for row in shown:
        question = ["-q", row["question"]] if "question" in row else []
        command = "vqa" if question else "caption"
        arguments = [command, "sample_images", "-m", "tiny", "-o", str(tmp_path / f"{len(question)}.jsonl"), *question]
        assert CliRunner().invoke(app, [*arguments, "--device", "cpu"]).exit_code == 0
        rows = [json.loads(line) for line in (tmp_path / f"{len(question)}.jsonl").read_text().splitlines()]
        assert row in rows


def test_every_failure_that_can_happen_is_explained() -> None:
    assert all(f"`{code}`" in README for code in FAILURES)


def test_every_promise_has_tests_that_exist() -> None:
    promises = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    assert all("test_" in line for line in promises.splitlines() if line.startswith("| ") and "| promise |" not in line)
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/\w+\.py)\)", promises)
    assert len(named) > 20
    for name, file in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
