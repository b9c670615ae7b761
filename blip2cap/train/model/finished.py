"""A finished model as a checkpoint folder in the form of the hub, replaced in a way that a kill cannot damage."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Blip2Processor, BlipImageProcessorPil, InstructBlipProcessor

from blip2cap.errors import OutputError
from blip2cap.models.loading import quiet_libraries
from blip2cap.outputs.files import OS_FILES, Files, sync_folder
from blip2cap.train.model.base import Base

_CONFIG = "config.json"
"""Written last, removed first: a folder without it is no checkpoint."""
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")


def save_checkpoint(base: Base, folder: Path, *, state: dict[str, torch.Tensor], files: Files = OS_FILES) -> None:
    """Write configurations, tokenizers, and `state` as the weights; a checkpoint in the folder is replaced.

    Raises OutputError.
    """
    temporary = folder / ".model.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # a killed run may have left it
        temporary.mkdir(parents=True)
        with quiet_libraries():
            base.model.save_pretrained(temporary, state_dict=state)
            _processor(base).save_pretrained(temporary)
        for path in (path for path in temporary.rglob("*") if path.is_file()):
            _sync(path, files)
        _move(temporary, folder, files)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}. Use another --out.") from error


def _processor(base: Base) -> Any:
    size = {"height": base.image_size, "width": base.image_size}
    image_processor = BlipImageProcessorPil(size=size, image_mean=list(base.mean), image_std=list(base.std))
    # With a number of queries, processors begin texts with image tokens, which a model without one cannot read.
    num_queries = None if base.image_token_id is None else base.num_queries
    if base.qformer_tokenizer is not None:
        return InstructBlipProcessor(
            image_processor, base.tokenizer, base.qformer_tokenizer, num_query_tokens=num_queries
        )
    return Blip2Processor(image_processor, base.tokenizer, num_query_tokens=num_queries)


def _move(temporary: Path, folder: Path, files: Files) -> None:
    """Move everything into the folder; at any moment it holds the old checkpoint, none, or the new one."""
    (folder / _CONFIG).unlink(missing_ok=True)
    sync_folder(files, folder)
    for path in (path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        path.unlink()  # shards, whose number may change
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == _CONFIG):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        if path.name == _CONFIG:
            sync_folder(files, folder)
        files.replace(path, target)
    temporary.rmdir()
    sync_folder(files, folder)


def _sync(path: Path, files: Files) -> None:
    file = files.open(path, os.O_RDONLY)
    try:
        files.fsync(file)
    finally:
        files.close(file)
