"""Recipes: options of a training as TOML, by section; those shipped with the package, and the one in a folder of a run.

task = "caption"          # if it is for one task only

[model]
model = "Salesforce/blip2-opt-2.7b"
train = ["lora"]

[optim]
learning-rate = 1e-4

Keys are the long flags of `blip2cap train`; a key that is left out has its default.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip2cap.errors import UsageError
from blip2cap.flags import flags_of

SHIPPED = Path(__file__).parent / "recipes"
RECIPE = "recipe.toml"
"""Name of the recipe in the folder of a run."""
SECTIONS = ("data", "model", "optim", "loop")
FOUND = "found"
"""Section with what the options stood for: the data and the model that they named."""
Table = dict[str, Any]


def shipped_names() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find_recipe(name: str) -> Path:
    """Return the file of a recipe, shipped or the user's. Raises UsageError."""
    if name in shipped_names():
        return SHIPPED / f"{name}.toml"
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(
            f"--recipe {name}: no such file. Expected a TOML file, or one of {', '.join(shipped_names())}."
        )
    return path


def read_recipe(path: Path) -> Table:
    """Return the tables of a recipe, of a run also what it has found. Raises UsageError for a file that is none."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{path}: not TOML: {error}.") from error
    for name, value in content.items():
        if name != "task" and not (name in (*SECTIONS, FOUND) and isinstance(value, dict)):
            raise UsageError(
                f"{path}: unknown section [{name}]. Expected {', '.join(f'[{each}]' for each in SECTIONS)}."
            )
    return content


def table_of(*options: Any) -> Table:
    """Return the options of dataclasses by their long flags, without those that are empty."""
    return {
        its_flag.long_name: _encodable(value)
        for each in options
        for field, its_flag in flags_of(each)
        if (value := getattr(each, field.name)) not in (None, ())
    }


def _encodable(value: Any) -> Any:
    """Escape bytes of paths that are not UTF-8, which TOML cannot hold."""
    if isinstance(value, tuple):
        return tuple(map(_encodable, value))
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def toml(recipe: Mapping[str, Any]) -> str:
    """Return the text of a recipe; values are text, numbers, switches and lists of text."""
    lines = [f"{name} = {_value(value)}" for name, value in recipe.items() if not isinstance(value, Mapping)]
    for section, table in recipe.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{section}]", *(f"{name} = {_value(value)}" for name, value in table.items())]
    return "\n".join(lines).lstrip("\n") + "\n"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    # Strings and switches are written as in JSON, whose escapes TOML has too; DEL is the only one that JSON leaves.
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, without: frozenset[str]) -> list[str]:
    """Return what differs between two recipes: "--learning-rate 1e-05, now 0.0001", without some keys."""
    pairs = [("task", old.get("task"), new.get("task"))]
    for section in (*SECTIONS, FOUND):
        then, now = old.get(section, {}), new.get(section, {})
        prefix = "" if section == FOUND else "--"
        pairs += [(prefix + name, then.get(name), now.get(name)) for name in {**then, **now} if name not in without]
    return [f"{name} {_shown(then)}, now {_shown(now)}" for name, then, now in pairs if _plain(then) != _plain(now)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "not given" if value is None else str(value)
