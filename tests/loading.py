"""The model inside the package and the commands, loaded and built once in a process instead of once in a test."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import typer.testing

from blip2cap.models.checkpoint import TINY


def build_commands_once() -> None:
    """Make `CliRunner` keep the commands that typer makes of the functions."""
    runner: Any = typer.testing
    runner._get_command = functools.cache(runner._get_command)


def read_tiny_once() -> None:
    """Give copies of what was read first for the model inside the package; other checkpoints are read each time."""
    from blip2cap.models import loading
    from blip2cap.models.blip2 import load

    networks: dict[Any, Any] = {}

    @functools.wraps(loading.read_network)
    def network(network_class: Any, checkpoint: Any, **settings: Any) -> Any:
        if checkpoint.folder != TINY or checkpoint.adapter or settings["device_map"] or settings["quantization_config"]:
            return loading.read_network(network_class, checkpoint, **settings)
        dtype = settings["dtype"]
        if dtype not in networks:
            networks[dtype] = loading.read_network(network_class, checkpoint, **settings)
        return copy.deepcopy(networks[dtype])

    tokenizers = functools.cache(loading.read_tokenizer)

    def tokenizer(folder: Path, **settings: Any) -> Any:
        read = tokenizers if folder == TINY else loading.read_tokenizer
        return copy.deepcopy(read(folder, **settings))

    vars(load).update(read_network=network, read_tokenizer=tokenizer)
