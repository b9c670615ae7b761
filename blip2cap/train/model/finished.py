"""A finished model as a checkpoint folder in the form of the hub, replaced in a way that a kill cannot damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Blip2Processor, BlipImageProcessorPil, InstructBlipProcessor

from blip2cap.errors import OutputError
from blip2cap.models import adapter
from blip2cap.models.loading import quiet_libraries
from blip2cap.outputs.files import OS_FILES, Files, sync_folder, sync_library_file
from blip2cap.train.model.base import Base
from blip2cap.train.write_errors import write_errors

CONFIGS = ("config.json", adapter.CONFIG)
"""Written last, removed first: a folder without any is no checkpoint."""
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", adapter.WEIGHTS)


def save_checkpoint(base: Base, folder: Path, *, state: dict[str, torch.Tensor], files: Files = OS_FILES) -> None:
    """Write configurations, tokenizers, and `state` as the weights; a checkpoint in the folder is replaced.

    Raises OutputError.
    """

    def write(temporary: Path) -> None:
        base.model.save_pretrained(temporary, state_dict=state)
        _processor(base).save_pretrained(temporary)

    save_folder(folder, write, files=files)


def save_folder(folder: Path, write: Callable[[Path], None], *, files: Files = OS_FILES) -> None:
    """Replace the checkpoint in a folder by the files that `write` makes in another. Raises OutputError."""
    temporary = folder / ".model.tmp"
    try:
        with write_errors(folder):
            shutil.rmtree(temporary, ignore_errors=True)  # a killed run may have left it
            temporary.mkdir(parents=True)
            with quiet_libraries():
                write(temporary)
            for path in (path for path in temporary.rglob("*") if path.is_file()):
                sync_library_file(files, path)
            _move(temporary, folder, files)
    except OutputError:
        shutil.rmtree(temporary, ignore_errors=True)  # on a full disk, it takes space that others need
        raise


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
    for name in CONFIGS:
        (folder / name).unlink(missing_ok=True)
    sync_folder(files, folder)
    for path in (path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        path.unlink()  # shards, whose number may change
    for path in sorted(temporary.iterdir(), key=lambda path: path.name in CONFIGS):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        if path.name in CONFIGS:
            sync_folder(files, folder)
        files.replace(path, target)
    temporary.rmdir()
    sync_folder(files, folder)
