"""Imports point down one list of layers, and nothing below the models imports torch."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import blip2cap
from tests.commands import invoke, num_lines
from tests.fakes import FakeModel

PACKAGE = Path(blip2cap.__file__).parent

LAYERS = {
    7: {"cli"},
    6: {"captioner", "parts", "bench"},
    5: {"run", "train", "export"},
    4: {"batch", "flow", "model", "results"},
    3: {"source", "decode", "sink", "scenes", "scene_things", "plan", "text_guard"},
    2: {"options", "prompts", "text_rules", "remote", "files"},
    1: {"errors", "records", "stopwatch", "batch_size", "keys"},
}
LEVELS = {name: level for level, names in LAYERS.items() for name in names}
ONE_NOUN = {"scene_things": "scenes"}
"""Files that are halves of one thing may import each other."""
EXEMPT = {"__init__", "__main__"}
"""The package's own front doors."""
LIGHT = {name for name, level in LEVELS.items() if level <= 3} | {"cli", "export", "results"}
"""What starts without torch."""
HEAVY = {"torch", "transformers"}
LATE = {"run", "parts", "model", "captioner", "train", "bench", "batch"}
"""What cli imports only where there is work to do."""


def noun(module: str) -> str:
    """Return the part of a module's name that has a level: model for blip2cap.model.blip2."""
    name = module.removeprefix("blip2cap.").split(".")[0]
    return ONE_NOUN.get(name, name)


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Yield every imported module with whether it is imported at once, when the module that says so is."""
    stack: list[tuple[ast.AST, bool]] = [(ast.parse(source), True)]
    while stack:
        node, at_once = stack.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            if origin == "blip2cap":
                yield from ((f"blip2cap.{alias.name}", at_once) for alias in node.names)
            else:
                yield origin, at_once
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack += [(child, False) for child in node.body] + [(child, at_once) for child in node.orelse]
        else:
            later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            stack += [(child, at_once and not later) for child in ast.iter_child_nodes(node)]


def complaints(module: str, source: str) -> list[str]:
    """Say which imports of a module break the rules."""
    here = noun(module)
    found = []
    for target, at_once in imports(source):
        package = target.split(".")[0]
        if target.startswith("."):
            found.append(f"{module}: relative import of {target}")
        elif package in HEAVY and at_once and here in LIGHT:
            found.append(f"{module}: imports {target} at once")
        elif package == "blip2cap" and target not in ("blip2cap", "blip2cap.__version__"):
            there = noun(target)
            if there not in LEVELS:
                found.append(f"{module}: {target} has no layer")
            elif there != here and LEVELS[there] >= LEVELS[here]:
                found.append(f"{module}: {target} is not below it")
            elif here == "cli" and there in LATE and at_once and target != "blip2cap.cli":
                found.append(f"{module}: imports {target} at once")
    return found


def modules() -> dict[str, Path]:
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return {".".join(("blip2cap", *path.with_suffix("").parts)): PACKAGE / path for path in sorted(paths)}


MODULES = {module: path for module, path in modules().items() if module.split(".")[1] not in EXEMPT}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_and_light_modules_stay_light(module):
    assert complaints(module, MODULES[module].read_text()) == []


def test_every_module_has_a_layer_and_every_layer_its_modules():
    assert {noun(module) for module in MODULES} == {noun(name) for name in LEVELS}


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("errors", "import blip2cap.records", "blip2cap.records is not below it"),
        ("options", "from blip2cap.prompts import Template", "blip2cap.prompts is not below it"),
        ("source", "from blip2cap.decode import read", "blip2cap.decode is not below it"),
        ("decode", "from blip2cap import batch", "blip2cap.batch is not below it"),
        ("decode", "def f():\n    from blip2cap.model.load import load", "blip2cap.model.load is not below it"),
        ("sink", "if TYPE_CHECKING:\n    from blip2cap.run import Summary", "blip2cap.run is not below it"),
        ("model.load", "import blip2cap.cli.job", "blip2cap.cli.job is not below it"),
        ("source", "from blip2cap.wishes import x", "blip2cap.wishes has no layer"),
        ("source", "from . import decode", "relative import of ."),
        ("source", "from .decode import read", "relative import of .decode"),
        ("records", "import torch", "imports torch at once"),
        ("sink", "import json, torch.nn as nn", "imports torch.nn at once"),
        ("cli.show", "from transformers import AutoTokenizer", "imports transformers at once"),
        ("plan", "try:\n    import torch\nexcept ImportError:\n    pass", "imports torch at once"),
        ("plan", "class A:\n    import torch", "imports torch at once"),
        ("plan", "if TYPE_CHECKING:\n    pass\nelse:\n    import torch", "imports torch at once"),
        ("cli.job", "from blip2cap.run import run", "imports blip2cap.run at once"),
        ("cli.job", "from blip2cap import captioner", "imports blip2cap.captioner at once"),
    ],
)
def test_a_bad_import_is_found(module, source, complaint):
    assert complaints(f"blip2cap.{module}", source) == [f"blip2cap.{module}: {complaint}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sink.journal", "from blip2cap.sink.manifest import Manifest"),
        ("sink.manifest", "from blip2cap import __version__"),
        ("scenes", "from blip2cap.scene_things import PAINTERS"),
        ("model.blip2", "import torch\nfrom blip2cap.model.sampling import row_seed"),
        ("cli.caption", "from blip2cap.cli import arguments as arg\nfrom blip2cap.cli.job import Job"),
        ("cli.job", "def f():\n    import torch\n    from blip2cap.run import run"),
        ("cli.job", "if TYPE_CHECKING:\n    from blip2cap.run import run"),
        ("source", "import torchless\nfrom blip2cap.errors import InputError"),
    ],
)
def test_a_good_import_is_left_alone(module, source):
    assert complaints(f"blip2cap.{module}", source) == []


def imported_by(folder: Path, *arguments: str) -> set[str]:
    """Run Python in a folder and return the names of all packages that it imported. The run must end with 0."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {name.split(".")[0] for name in re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)}


class ReadyModel(FakeModel):
    """A fake that a whole command can load."""

    dtype = "torch.float32"
    device = SimpleNamespace(type="cpu")

    def why_library(self) -> str:
        """It needs none."""
        return ""

    def check(self, options: object) -> None:
        """Every option fits."""


@pytest.fixture
def finished_run(scenes, here, monkeypatch):
    """Make a folder with the rows of a finished run; return the command that made them."""
    ready = ModuleType("blip2cap.model.load")
    ready.__dict__["load"] = lambda checkpoint, options: ReadyModel()
    monkeypatch.setitem(sys.modules, ready.__name__, ready)
    command = ("caption", str(scenes), "--model", "tiny")
    assert invoke(*command).exit_code == 0
    assert num_lines(here / "captions.jsonl") == 5
    return command


def test_a_resumed_run_with_nothing_to_do_imports_no_torch(finished_run, here):
    before = (here / "captions.jsonl").read_bytes()
    imported = imported_by(here, "-m", "blip2cap", *finished_run)
    assert "typer" in imported
    assert not imported & HEAVY
    assert (here / "captions.jsonl").read_bytes() == before


def test_a_plan_of_a_run_imports_no_torch(finished_run, here):
    assert not imported_by(here, "-m", "blip2cap", *finished_run, "--overwrite", "--dry-run") & HEAVY


@pytest.mark.parametrize("command", [(), ("caption",), ("vqa",)])
def test_help_imports_no_torch(tmp_path, command):
    imported = imported_by(tmp_path, "-m", "blip2cap", *command, "--help")
    assert "typer" in imported
    assert not imported & {*HEAVY, "numpy", "pyarrow", "tarfile"}


def test_an_import_of_torch_by_a_driver_is_found(tmp_path):
    for name in HEAVY:
        (tmp_path / f"{name}.py").touch()
        assert name in imported_by(tmp_path, "-c", f"def late():\n    import {name}\nlate()")
