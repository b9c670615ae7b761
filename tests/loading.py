"""The models inside the package and the commands, loaded and built once in a process instead of once in a test."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer.testing

from blip2cap.models.checkpoint import PACKAGED


def build_commands_once() -> None:
    """Make `CliRunner` keep the commands that typer makes of the functions."""
    runner: Any = typer.testing
    runner._get_command = functools.cache(runner._get_command)


def read_packaged_once() -> None:
    """Give copies of what was read first for the models inside the package; other checkpoints are read each time."""
    from blip2cap.models import checkpoint, loading
    from blip2cap.models.blip2 import load
    from blip2cap.models.matching import load as matching_load

    networks: dict[Any, Any] = {}

    @functools.wraps(loading.read_network)
    def network(network_class: Any, found: Any, *, dtype: Any, **settings: Any) -> Any:
        if found.folder not in PACKAGED.values() or found.adapter or any(settings.values()):
            return loading.read_network(network_class, found, dtype=dtype, **settings)
        which = found.folder, dtype
        if which not in networks:
            networks[which] = loading.read_network(network_class, found, dtype=dtype, **settings)
        return _with_same_weights(networks[which], {})

    vars(load).update(read_network=network, read_tokenizer=_once(loading.read_tokenizer))
    vars(matching_load).update(read_network=network)
    vars(checkpoint).update(_fingerprint=_once(checkpoint._fingerprint))


def _once(read: Callable[..., Any]) -> Callable[..., Any]:
    """Read a folder inside the package once; return copies."""
    kept = functools.cache(read)

    @functools.wraps(read)
    def copied(folder: Path, **settings: Any) -> Any:
        return copy.deepcopy((kept if folder in PACKAGED.values() else read)(folder, **settings))

    return copied


def _with_same_weights(module: Any, configs: dict[int, Any]) -> Any:
    """Copy a network of which layers are replaced and configurations change, but never the values of a weight.

    A deep copy takes ten times as long. `configs`: copies of objects of transformers, by the ids of theirs.
    """
    new = object.__new__(type(module))
    for name, value in vars(module).items():
        if name == "_modules":
            value = {key: child and _with_same_weights(child, configs) for key, child in value.items()}
        elif isinstance(value, dict | set | list):
            value = value.copy()
        elif name.endswith("config"):
            value = copy.deepcopy(value, configs)
        vars(new)[name] = value
    return new
