"""README and the other pages are true."""

from __future__ import annotations

import ast
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.model_memory import captioners, memory_of, short_table, table
from blip2cap.models.checkpoint import TINY, find
from blip2cap.options import ModelOptions
from blip2cap.records import FAILURES
from tests.checkpoints import make_checkpoint
from tests.commands import invoke
from tests.doc_blocks import (
    PAGES,
    ROOT,
    command_blocks,
    comparable,
    folder_of_a_page,
    python_blocks,
    run_commands,
    run_python,
)

TEXTS = {os.path.relpath(page, ROOT): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
COMMANDS = (
    *("caption", "vqa", "match", "embed", "index", "search", "duplicates", "show", "status", "export", "bench"),
    *("import-lavis", "check-data", "evaluate", "train caption", "train vqa", "train stage1", "train stage2"),
)
PACKAGE = ROOT / "blip2cap"


def pages_with(found: object) -> pytest.MarkDecorator:
    """Run a test for each page in which `found` finds something; all but the README take long."""
    pages = [page for page in PAGES if found(page)]  # type: ignore[operator]
    assert pages
    params = [pytest.param(page, marks=[] if page.name == "README.md" else [pytest.mark.long]) for page in pages]
    return pytest.mark.parametrize("page", params, ids=lambda page: os.path.relpath(page, ROOT))


def slug(heading: str) -> str:
    """Name the place that a heading can be linked by, as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def messages(source: str) -> set[str]:
    """Return every text of a module with `...` for what is filled in."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
            found.add(re.sub(r"(\.\.\.)+", "...", "".join(map(str, parts))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_readme_begins_with_the_two_commands_of_a_fresh_clone():
    first = re.search(r"```\n(.*?)```", README, flags=re.DOTALL)
    assert first is not None
    assert first[1].split("\n") == ["make demo", "make test", ""]


@pytest.mark.parametrize("page", TEXTS)
def test_targets_of_make_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", TEXTS[page], flags=re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, flags=re.MULTILINE), target


@pages_with(command_blocks)
def test_commands_of_a_page_print_what_it_shows(page):
    with folder_of_a_page():
        for block in command_blocks(page):
            assert comparable(run_commands(block)) == comparable(block)


@pages_with(python_blocks)
def test_python_of_a_page_prints_what_it_shows(page):
    names: dict[str, object] = {}
    with folder_of_a_page():
        for code, printed in python_blocks(page):
            assert run_python(code, names) == printed


def test_settings_that_a_page_shows_as_a_file_are_known():
    (settings,) = re.findall(r"```toml\n(.*?)```", TEXTS["docs/quickstart.md"], flags=re.DOTALL)
    with folder_of_a_page():
        Path("settings.toml").write_text(settings, encoding="utf-8")
        assert invoke("caption", "sample_images", "--config", "settings.toml", "--dry-run").exit_code == 0


def test_options_that_pages_name_exist():
    env = {"COLUMNS": "200"}
    helps = {command: invoke(*command.split(), "--help", env=env).output for command in (*COMMANDS, "")}
    for page, text in TEXTS.items():
        if page.startswith("benchmarks"):
            continue  # its scripts have options of their own
        for command, rest in re.findall(rf"blip2cap ({'|'.join(COMMANDS)})\b([^\n|#`]*)", text):
            for flag in re.findall(r"(?<=\s)-{1,2}[a-z0-9][a-z-]*", rest):
                assert re.search(rf"{flag}\b", helps[command]), f"{page}: {command} {flag}"
        elsewhere = re.sub(r"^.*(pip|find|tar|git|make|#SBATCH|nvidia).*$", "", text, flags=re.MULTILINE)
        for flag in re.findall(r"(?<=`)--[a-z][a-z-]*", elsewhere):
            assert any(re.search(rf"{flag}\b", printed) for printed in helps.values()), f"{page}: {flag}"


def test_every_failure_that_can_happen_is_explained():
    assert all(f"`{code}`" in TEXTS["docs/outputs.md"] for code in FAILURES)


def test_messages_that_are_explained_are_in_the_source():
    quoted = re.findall(r"^### `(.*)`$", TEXTS["docs/troubleshooting.md"], flags=re.MULTILINE)
    assert len(quoted) == 10
    known = {text for path in PACKAGE.rglob("*.py") for text in messages(path.read_text(encoding="utf-8"))}
    for message in quoted:
        assert any(message in text for text in known), message


def test_a_message_is_found_with_its_values_left_out():
    assert "...: ... is gone. Use ..." in messages('f"{path}: {a}{b} is " f"gone. Use {flag}"')


def test_every_promise_has_tests_that_exist():
    promises = TEXTS["docs/promises.md"]
    assert all("test_" in line for line in promises.splitlines() if line.startswith("| ") and "| promise |" not in line)
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/\w+\.py)\)", promises)
    assert len(named) > 20
    for name, file in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[page]):
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_every_page_can_be_reached_from_readme():
    reached, pending = set(), [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r"\]\((?!https?:)([^)#]+\.md)", page.read_text(encoding="utf-8"))
            pending += [Path(os.path.normpath(page.parent / link)) for link in links]
    assert set(PAGES) - reached == set()


def test_architecture_has_every_package():
    page = TEXTS["docs/architecture.md"]
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    missing = {name for name in names if not name.startswith("__") and not re.search(rf"`{name}/?`", page)}
    assert missing == set()
    for name in re.findall(r"`([a-z_]+/[a-z_0-9/]*(?:\.py)?)`", page):
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


def test_tables_of_memory_show_the_figures_that_were_computed():
    models = json.loads((ROOT / "benchmarks" / "results" / "model_memory.json").read_text(encoding="utf-8"))["models"]
    assert {*models} == {checkpoint.name for checkpoint in captioners()}
    assert "\n".join(table(models)) in TEXTS["docs/models.md"]
    assert "\n".join(short_table(models)) in README


@pytest.mark.long
def test_memory_is_computed_from_the_configurations():
    models = json.loads((ROOT / "benchmarks" / "results" / "model_memory.json").read_text(encoding="utf-8"))["models"]
    name = "Salesforce/blip2-opt-2.7b"
    assert memory_of(find(ModelOptions(name=name, random_weights=True))) == models[name]


def test_memory_of_weights_is_that_of_the_file_they_are_stored_in():
    with open(TINY / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    stored = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
    memory = memory_of(find(ModelOptions(name="tiny", random_weights=True)))
    assert memory["weights"]["bfloat16"] == stored
    assert stored < memory["weights"]["float32"]
    assert memory["weights"]["nf4"] < memory["weights"]["int8"] < memory["weights"]["bfloat16"]


def test_memory_counts_the_output_layer_of_flan_t5(tmp_path):
    tied = find(ModelOptions(name=str(make_checkpoint(tmp_path, "t5")), random_weights=True))
    text = tied.config["text_config"]
    untied = replace(tied, config=tied.config | {"text_config": text | {"tie_word_embeddings": False}})
    more = memory_of(untied)["parameters"] - memory_of(tied)["parameters"]
    assert more == text["vocab_size"] * text["d_model"]


def test_the_package_says_that_it_has_types():
    assert (PACKAGE / "py.typed").is_file()
