"""Writes a checkpoint folder that is whole, or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from blip2cap.errors import OutputError, OutputGoneError, OutputRefusedError
from blip2cap.outputs.files import OS_FILES, Files, holding_lock, sync_folder, sync_library_file, write_whole

MAX_SHARD_BYTES = 5_000_000_000
"""Size of a file of weights, as transformers 4 has written those on the hub."""


def check_is_free(out: Path) -> None:
    """Raise OutputRefusedError if something is in the way of a new folder, OutputGoneError if it has no parent."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputRefusedError(f"{out}: not a folder. Expected the name of a new folder; use another --out.")
    if out.is_dir() and any(out.iterdir()):
        raise OutputRefusedError(f"{out}: a folder with files. Expected a new or empty one; use another --out.")
    if not out.absolute().parent.is_dir():
        raise OutputGoneError(f"{out} cannot be created: its parent folder does not exist. Create that first.")


def write_folder(
    out: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, bytes],
    *,
    files: Files = OS_FILES,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write weights and settings into a folder beside `out`, and rename it when everything is on the disk.

    Raises OutputError if that is not possible, OutputLockedError while another process writes the same folder.
    """
    check_is_free(out)
    try:
        with _beside(out, files) as folder:
            for name, data in settings.items():
                (folder / name).parent.mkdir(exist_ok=True)
                write_whole(files, folder / name, data)
            _write_weights(folder, tensors, files, max_shard_bytes)
            for path in folder.rglob("*"):
                if path.is_dir():
                    sync_folder(files, path)
            sync_folder(files, folder)
            files.replace(folder, out)
            sync_folder(files, out.absolute().parent)
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written: {error.strerror}. Free some space, or use another disk."
        ) from error
    except SafetensorError as error:
        raise OutputError(f"{out}: cannot be written: {error}. Free some space, or use another disk.") from error


@contextmanager
def _beside(out: Path, files: Files) -> Iterator[Path]:
    """Create the folder that will be renamed, empty and locked; it is removed if the block fails.

    A killed process leaves it behind; the next one finds it without a lock, and uses it.
    """
    folder = out.absolute().with_name(f".{out.name}.importing")
    folder.mkdir(exist_ok=True)
    lock = files.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    busy = f"{out}: another process is writing it. Wait for it, or use another --out."
    with holding_lock(files, lock, out, busy=busy):
        try:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], files: Files, max_shard_bytes: int) -> None:
    """Write safetensors as transformers does: one file, or several with an index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous()
        size += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        sync_library_file(files, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        metadata = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        index = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2)
        write_whole(files, folder / "model.safetensors.index.json", index.encode())
