"""Imports point down one list of layers, and nothing below the models imports torch."""

import ast
import json
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

LAYERS = (
    ("cli",),
    ("train",),
    ("evaluate", "lavis"),
    ("captioner", "matcher", "image_index", "bench"),
    ("index", "scale"),
    ("chat",),
    ("jobs", "images_in_memory"),
    ("workers",),
    ("engine",),
    ("models.checkpoint",),
    ("models.registry",),
    ("models.matching", "models.vlm", "models.server"),
    ("models.blip2", "outputs.export"),
    ("outputs", "models.device", "models.loading"),
    ("tasks", "models.vlm.families"),
    ("models",),
    ("source", "decode"),
    (
        "options",
        "train.options",
        "scale.options",
        "workers.options",
        "prompts",
        "prompt_library",
        "urls",
        "outputs.files",
        "tiny.scenes",
    ),
    ("server_options", "generate_options"),
    ("flags",),
    ("errors", "records", "rows", "stopwatch", "batch_size", "key_set", "tiny", "escapes"),
    ("column_types",),
)
"""From the top down. A module belongs to the longest name that it begins with."""
LEVELS = {name: -level for level, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "transformers", "ray"}
PACKAGES = {
    *("cli", "index", "jobs", "tasks", "models", "models.checkpoint", "models.registry", "models.vlm.families"),
    *("outputs", "outputs.export"),
}
LIGHT = PACKAGES | {name for names in LAYERS[LAYERS.index(("source", "decode")) :] for name in names}
"""Modules that import nothing of HEAVY at once."""
LATE = {
    *("jobs.run", "jobs.context", "jobs.parts", "jobs.texts", "engine"),
    *("models.blip2", "models.matching", "models.server"),
    *("captioner", "chat", "matcher", "image_index", "images_in_memory", "bench", "index", "scale"),
    *("train", "evaluate", "lavis", "workers", "jobs.makers"),
}
"""Modules that `cli` imports only when there is work to do."""
_OPTIONS = {"train.options", "scale.options", "workers.options"}
FRONT_DOORS = {"blip2cap", "blip2cap.__init__", "blip2cap.__main__", "blip2cap.__version__"}


def layer(module: str) -> str | None:
    """Return the entry of LAYERS that a module belongs to: models.blip2 for blip2cap.models.blip2.opt."""
    parts = module.removeprefix("blip2cap.").split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in LEVELS), None)


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Yield every imported module with whether it is imported at once, when the module that says so is."""
    stack: list[tuple[ast.AST, bool]] = [(ast.parse(source), True)]
    while stack:
        node, at_once = stack.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            if origin.split(".")[0] == "blip2cap":
                yield from ((_imported(origin, alias.name), at_once) for alias in node.names)
            else:
                yield origin, at_once
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack += [(child, False) for child in node.body] + [(child, at_once) for child in node.orelse]
        else:
            later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            stack += [(child, at_once and not later) for child in ast.iter_child_nodes(node)]


def _imported(origin: str, name: str) -> str:
    """Return the module that `from origin import name` imports."""
    path = PACKAGE.joinpath(*origin.split(".")[1:], name)
    return f"{origin}.{name}" if origin == "blip2cap" or path.is_dir() or path.with_suffix(".py").is_file() else origin


def complaints(module: str, source: str) -> list[str]:
    """Say which imports of a module break the rules."""
    here = layer(module)
    found = [] if here else [f"{module}: has no layer"]
    for target, at_once in imports(source):
        there = layer(target)
        if target.startswith("."):
            found.append(f"{module}: relative import of {target}")
        elif target.split(".")[0] in HEAVY and at_once and here in LIGHT:
            found.append(f"{module}: imports {target} at once")
        elif target.split(".")[0] != "blip2cap" or target in FRONT_DOORS:
            continue
        elif there is None:
            found.append(f"{module}: {target} has no layer")
        elif there != here and here and LEVELS[there] >= LEVELS[here]:
            found.append(f"{module}: {target} is not below it")
        elif here == "cli" and at_once and there not in _OPTIONS and _is_late(target):
            found.append(f"{module}: imports {target} at once")
    return found


def _is_late(target: str) -> bool:
    return any(f"{target}.".startswith(f"blip2cap.{late}.") for late in LATE)


def test_imports_point_down_and_light_modules_stay_light():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(("blip2cap", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        if module not in FRONT_DOORS:
            found += complaints(module, path.read_text())
    assert found == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("errors", "import blip2cap.options", "blip2cap.options is not below it"),
        ("source.walk", "from blip2cap.decode import read", "blip2cap.decode.read is not below it"),
        (
            "models.base",
            "def f():\n    import blip2cap.models.blip2.load",
            "blip2cap.models.blip2.load is not below",
        ),
        (
            "outputs.open",
            "if TYPE_CHECKING:\n    from blip2cap.engine import run",
            "blip2cap.engine.run is not below it",
        ),
        ("source.walk", "from blip2cap.wishes import x", "blip2cap.wishes has no layer"),
        ("source.walk", "from .decode import read", "relative import of .decode"),
        (
            "outputs.open",
            "try:\n    import json, torch.nn as nn\nexcept ImportError:\n    pass",
            "imports torch.nn at once",
        ),
        ("cli.show", "class A:\n    from transformers import AutoTokenizer", "imports transformers at once"),
        ("cli.caption", "from blip2cap.jobs.run import run_job", "imports blip2cap.jobs.run at once"),
    ],
)
def test_a_bad_import_is_found(module, source, complaint):
    (found,) = complaints(f"blip2cap.{module}", source)
    assert found.startswith(f"blip2cap.{module}: {complaint}")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("outputs.journal", "import torchless\nfrom blip2cap.outputs.manifest import Manifest\nimport blip2cap.errors"),
        ("outputs.manifest", "from blip2cap import __version__"),
        ("models.blip2.model", "import torch\nfrom blip2cap.models.base import Checkpoint"),
        ("cli.caption", "def f():\n    import torch\n    from blip2cap.jobs.run import run_job"),
        ("cli.caption", "if TYPE_CHECKING:\n    from blip2cap.jobs.run import run_job"),
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

    def check(self, options: object, prompts: object = ()) -> None:
        """Every option fits."""


@pytest.fixture
def finished_run(scenes, here, monkeypatch):
    """Make a folder with the rows of a finished run; return the command that made them."""
    ready = ModuleType("blip2cap.models.blip2.load")
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


HELPS = (
    *((), ("caption",), ("vqa",), ("match",), ("embed",), ("index",), ("search",), ("duplicates",), ("check-data",)),
    *(("train", "vqa"), ("evaluate",), ("import-lavis",), ("show",)),
)
_EVERY_HELP = """
import json, os, sys
from blip2cap.cli import app
for command in json.loads(sys.argv[1]):
    if not os.fork():  # else what the one before has imported would be there
        out, sys.stdout = sys.stdout, open(os.devnull, "w")
        try:
            app([*command, "--help"])
        except SystemExit as end:
            assert end.code == 0, end.code
        print(json.dumps([command, sorted({name.split(".")[0] for name in sys.modules})]), file=out, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, command
"""


def test_help_imports_no_torch(tmp_path):
    command = [sys.executable, "-c", _EVERY_HELP, json.dumps(HELPS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = {tuple(command): set(names) for command, names in map(json.loads, done.stdout.splitlines())}
    assert imported.keys() == set(HELPS)
    too_many = {*HEAVY, "numpy", "pyarrow", "pydantic", "rich", "tarfile"}
    assert {command: names & too_many for command, names in imported.items() if names & too_many} == {}
    assert all("typer" in names for names in imported.values())


def test_an_import_of_torch_by_a_driver_is_found(tmp_path):
    for name in HEAVY:
        (tmp_path / f"{name}.py").touch()
        assert name in imported_by(tmp_path, "-c", f"def late():\n    import {name}\nlate()")
