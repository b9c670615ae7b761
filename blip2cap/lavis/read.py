"""Reads a checkpoint file of LAVIS: tensors only, mapped into memory; and says what is in it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip2cap.errors import InputError, ModelError
from blip2cap.lavis.keys import Kind, is_clip, recognise

_EXPECTED = "Expected a checkpoint of LAVIS, such as checkpoint_best.pth: a zip file that torch 1.6 or later has saved."
_START_BYTES = 40
_CLIP_WIDTH = 1024
"""Hidden size of ViT-L (arXiv 2010.11929, table 1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LavisCheckpoint:
    """The content of a checkpoint file."""

    path: Path
    kind: Kind
    tensors: Mapping[str, Tensor]
    """Parameters by their names in LAVIS."""
    image_size: int | None
    """Side of the images in pixels by its configuration; None if the file has none."""


def read(path: Path) -> LavisCheckpoint:
    """Read a file that LAVIS has saved.

    Raises InputError if there is no such file, ModelError if it cannot be read safely, or is not of a model that
    transformers has.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file. Expected a checkpoint of LAVIS, such as checkpoint_best.pth.")
    content = _load(path)
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not tensors or not all(map(_is_parameter, tensors.items())):
        raise ModelError(
            f"{path}: holds no parameters. Expected what LAVIS saves: a dict whose `model` has tensors by name."
        )
    config = content.get("config") if tensors is not content else None
    model = config.get("model") if isinstance(config, dict) else None
    model = model if isinstance(model, dict) else {}
    _refuse_clip(path, tensors, model)
    kind = recognise(tensors)
    if kind is None:
        raise ModelError(
            f"{path}: no parameter that tells which model it is of. Expected one of opt_proj, t5_proj, llm_proj or "
            f"itm_head of LAVIS's blip2 models; it has {', '.join(sorted(tensors)[:5])}, ..."
        )
    image_size = model.get("image_size")
    return LavisCheckpoint(
        path=path, kind=kind, tensors=tensors, image_size=image_size if isinstance(image_size, int) else None
    )


def _is_parameter(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _load(path: Path) -> Any:
    try:
        _check_form(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: is not only tensors and plain values, or is damaged: {_first_line(error)} Nothing else is "
            "loaded, because it may run code. If you trust the file, keep its parameters only, in Python: torch.save("
            "{'model': torch.load(FILE, map_location='cpu', weights_only=False)['model']}, 'parameters.pth')."
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (RuntimeError, ValueError, EOFError) as error:
        raise ModelError(
            f"{path}: a zip file that is damaged, or that torch has not saved. {_EXPECTED} If it is one, copy it "
            f"again: a part is missing. torch says: {_first_line(error)}"
        ) from error


def _check_form(path: Path) -> None:
    """Raise ModelError for a file that torch cannot map into memory, by its first bytes: torch says only so."""
    with open(path, "rb") as file:
        start = file.read(_START_BYTES)
    if start.startswith(b"PK"):
        return
    if start.startswith(b"\x80"):
        raise ModelError(
            f"{path}: a pickle, or a file of torch before 1.6. {_EXPECTED} If it is a checkpoint, save it again, in "
            "Python: torch.save(torch.load(FILE, map_location='cpu', weights_only=True), 'new.pth')."
        )
    if not start:
        found = "an empty file"
    elif start[8:9] == b"{":
        found = "a safetensors file"
    elif start.isascii():
        found = f'a text that begins "{start.decode().splitlines()[0]}"'
    else:
        found = f"no file of torch: it begins with the bytes {start[:8].hex(' ')}"
    raise ModelError(f"{path}: {found}. {_EXPECTED}")


def _first_line(error: Exception) -> str:
    line = (str(error) or type(error).__name__).strip().splitlines()[0]
    return line if line.endswith(".") else f"{line}."


def _refuse_clip(path: Path, tensors: Mapping[str, Tensor], model: Mapping[str, Any]) -> None:
    norm = tensors.get("ln_vision.weight")
    if (
        model.get("vit_model") == "clip_L"
        or any(map(is_clip, tensors))
        or (norm is not None and norm.shape == (_CLIP_WIDTH,))
    ):
        raise ModelError(
            f"{path}: its vision encoder is CLIP ViT-L, which has a norm before its first layer and another "
            "activation; the BLIP-2 classes of transformers compute only EVA ViT-g. Expected a checkpoint that was "
            "trained with vit_model: eva_clip_g."
        )
