"""The checkpoint that gives what LAVIS has not trained: settings, tokenizer, frozen weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from blip2cap.errors import ModelError
from blip2cap.models.base import HINT, Checkpoint
from blip2cap.models.checkpoint import find
from blip2cap.options import ModelOptions

_SIZED = ("preprocessor_config.json", "processor_config.json")
"""Files with the size of images, at the top or in `image_processor`."""
_COPIED = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model"),
)


def find_base(options: ModelOptions, *, say: Callable[[str], None], quiet: bool) -> Checkpoint:
    """Find the checkpoint that --base names. Raises ModelError, as `models.checkpoint.find` does."""
    try:
        found = find(options, say=say, quiet=quiet)
    except ModelError as error:
        message = error.message.replace("--model ", "--base ").removesuffix(HINT).rstrip()
        raise ModelError(message) from error
    if found.adapter is not None:
        raise ModelError(f"--base {options.name}: an adapter. Give the model that LAVIS started from.")
    return found


class BaseWeights:
    """The weights of the base; a tensor is mapped, and read from the disk when it is used."""

    def __init__(self, files: dict[str, Any]) -> None:
        self._files = files

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors."""
        return self._files.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


@contextmanager
def open_weights(base: Checkpoint) -> Iterator[BaseWeights]:
    """Open the files with the weights. Raises ModelError if one is damaged."""
    index = base.folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for name in sorted(names):
            try:
                file = stack.enter_context(safe_open(base.folder / name, "pt"))
            except (OSError, SafetensorError) as error:
                raise ModelError(f"--base {base.name}: {name} cannot be read: {error}. Fetch it again.") from error
            files |= dict.fromkeys(file.keys(), file)
        yield BaseWeights(files)


def settings_for(base: Checkpoint, image_size: int) -> dict[str, bytes]:
    """Return the files beside the weights, by their paths in the folder, for images of a size in pixels."""
    vision = {**(base.config.get("vision_config") or {}), "image_size": image_size}
    files = {"config.json": _json({**base.config, "vision_config": vision})}
    for name in _SIZED:
        path = base.folder / name
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            for settings in (content, content.get("image_processor") or {}):
                if "size" in settings:
                    settings["size"] = {"height": image_size, "width": image_size}
            files[name] = _json(content)
    for folder in ("", "qformer_tokenizer/"):
        for name in _COPIED:
            path = base.folder / folder / name
            if path.is_file():
                files[folder + name] = path.read_bytes()
    return files


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
