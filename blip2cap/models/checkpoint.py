"""Finds the checkpoint that a model's name stands for, and checks that it is safe to load, without importing torch.

Refused, with the reason: folders without safetensors, with code of their own, or of an unknown family.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blip2cap.errors import ModelError, UsageError
from blip2cap.models import hub
from blip2cap.models.adapter import CONFIG as ADAPTER_CONFIG
from blip2cap.models.adapter import is_adapter, read_adapter
from blip2cap.models.base import HINT, TOKENIZER_FILES, Checkpoint, read_json, tokenizer_files
from blip2cap.models.registry import FAMILIES, recognise
from blip2cap.options import ModelOptions

TINY, TINY_ITM = (Path(__file__).parent.parent / name for name in ("tiny", "tiny_itm"))
"""Folders of the models inside the package: one that captions, one that matches."""
PACKAGED = {"tiny": TINY, "tiny-itm": TINY_ITM}
"""The same by the names that users give."""
KNOWN = Path(__file__).parent / "known"
"""Folder of the configurations of known checkpoints on the hub, to measure speed without their weights."""

_CHECKPOINTS = "checkpoints"
"""Folder in a finished training with the states to resume it from, which are no part of its model."""
_BLOCK = 65536
_NUM_BLOCKS = 128


def find(options: ModelOptions, *, say: Callable[[str], None] = lambda line: None, quiet: bool = False) -> Checkpoint:
    """Find the checkpoint of a name. Raises ModelError, which says why it cannot be used and what to do.

    `say` is called with a line before a download; `quiet`: without a progress bar. Raises UsageError for options that
    its family does not take.
    """
    checkpoint = _find(options, say=say, quiet=quiet)
    _check_options(checkpoint, options)
    return checkpoint


def _check_options(checkpoint: Checkpoint, options: ModelOptions) -> None:
    """Raise UsageError for options that the family of a checkpoint does not take."""
    FAMILIES[checkpoint.family].max_pixels(options)


def _find(options: ModelOptions, *, say: Callable[[str], None], quiet: bool) -> Checkpoint:
    if options.on_server:
        return _find_on_server(options)
    folder = PACKAGED.get(options.name) or Path(options.name).expanduser()
    if options.revision is not None and (options.random_weights or folder.is_dir()):
        raise UsageError(f"--revision {options.revision}: {options.name} is no model on the hub, it has no revisions.")
    if options.random_weights:
        return _find_configuration(options.name, folder)
    if options.name in PACKAGED:
        return _check(options.name, folder, _fingerprint(folder))
    if folder.is_dir() and is_adapter(folder):
        return _find_adapted(options, folder, say=say, quiet=quiet)
    if folder.is_dir():
        return _check(str(folder.resolve()), folder, _fingerprint(folder))
    if options.name.startswith((".", "/", "~")) or options.name.count("/") != 1:
        known = {name: name for name in PACKAGED} | {
            path.stem: f"Salesforce/{path.stem}" for path in KNOWN.glob("*.json")
        }
        close = difflib.get_close_matches(options.name.lower(), known, 1)
        meant = f" Did you mean {known[close[0]]}?" if close else ""
        raise ModelError(
            f"--model {options.name}: no such folder.{meant} Expected `tiny`, a folder with config.json, "
            f"or a hub id like Salesforce/blip2-opt-2.7b. {HINT}"
        )
    cached = hub.find_cached(options)
    if cached is not None:
        try:
            return _check(options.name, cached, cached.name)
        except ModelError:
            if hub.is_offline():
                raise

    def check(folder: Path) -> Checkpoint:
        checkpoint = _check_small_files(options.name, folder, folder.name)
        _check_options(checkpoint, options)
        return checkpoint

    folder = hub.download(options, check=check, say=say, quiet=quiet)
    return _check(options.name, folder, folder.name)


def _find_on_server(options: ModelOptions) -> Checkpoint:
    """Return the model of a server, without asking it. Raises UsageError if no server is given."""
    if options.server.base_url is None:
        raise UsageError(
            f"--model {options.name}: a model behind a server. To caption or vqa, give its address: --base-url "
            "http://localhost:8000/v1. Other commands need a model on this machine."
        )
    return Checkpoint(
        name=options.name, folder=Path(), commit="", family="openai", config={}, server=options.server.base_url
    )


def _find_adapted(options: ModelOptions, folder: Path, *, say: Callable[[str], None], quiet: bool) -> Checkpoint:
    """Find the model that an adapter changes."""
    adapter = read_adapter(options.name, folder)
    if is_adapter(Path(adapter.base).expanduser()):
        raise ModelError(f"--model {options.name}: an adapter of another one, {adapter.base}. Merge that first. {HINT}")
    base = find(dataclasses.replace(options, name=adapter.base, revision=adapter.revision), say=say, quiet=quiet)
    commit = f"{base.commit} + {_fingerprint(folder)}"
    return dataclasses.replace(base, name=str(folder.resolve()), commit=commit, adapter=adapter)


def _find_configuration(name: str, folder: Path) -> Checkpoint:
    """Find the configuration of a model without its weights, in a folder or among the known ones."""
    known = {path.stem: path for path in sorted(KNOWN.glob("*.json"))}
    if folder.is_dir():
        shown = name if name in PACKAGED else str(folder.resolve())
        return _check_config(shown, folder / "config.json", "random")
    path = known.get(name.removeprefix("Salesforce/"))
    if path is None:
        raise ModelError(
            f"--model {name}: no known size. Expected with --random-weights one of {', '.join(known)}, "
            f"or a folder with config.json. {HINT}"
        )
    return _check_config(name, path, "random")


def _check(name: str, folder: Path, commit: str) -> Checkpoint:
    checkpoint = _check_small_files(name, folder, commit)
    _check_weights(checkpoint)
    return checkpoint


def _check_small_files(name: str, folder: Path, commit: str) -> Checkpoint:
    checkpoint = _check_config(name, folder / "config.json", commit)
    for subfolder in FAMILIES[checkpoint.family].tokenizers:
        _check_tokenizer(name, folder / subfolder)
    return checkpoint


def _check_config(name: str, path: Path, commit: str) -> Checkpoint:
    folder = path.parent
    if not path.is_file():
        raise ModelError(f"--model {name}: {folder} has no {path.name}. Expected a BLIP-2 checkpoint. {HINT}")
    if (folder / ADAPTER_CONFIG).exists():  # transformers would load the model it names
        raise ModelError(
            f"--model {name}: a model and an adapter (adapter_config.json) in one folder. Expected either. {HINT}"
        )
    config = read_json(name, path)
    family = recognise(name, config).name
    if _has_code(name, folder, config):
        raise ModelError(
            f"--model {name}: its configuration asks for code of its own (auto_map), which blip2cap never runs. {HINT}"
        )
    checkpoint = Checkpoint(name=name, folder=folder, commit=commit, family=family, config=config)
    FAMILIES[family].check_files(checkpoint)
    return checkpoint


def _has_code(name: str, folder: Path, config: dict[str, Any]) -> bool:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    parts += [read_json(name, path) for path in folder.glob("*_config.json")]
    return any("auto_map" in part for part in parts)


def _check_weights(checkpoint: Checkpoint) -> None:
    name, folder = checkpoint.name, checkpoint.folder
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(name, index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"--model {name}: {index.name} lists no weights. Fetch it again. {HINT}")
        files = sorted({str(file) for file in weight_map.values()})
        # transformers would open other kinds of files with torch.load, and would follow a path out of the folder.
        others = [file for file in files if not file.endswith(".safetensors") or Path(file).name != file]
        if others:
            raise ModelError(
                f"--model {name}: {index.name} names {', '.join(others)}. Expected .safetensors files beside it. {HINT}"
            )
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise ModelError(
                f"--model {name}: weight files are missing: {', '.join(missing)}. Fetch them again. {HINT}"
            )
    elif not (folder / "model.safetensors").is_file():
        pickles = [path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in folder.glob(pattern)]
        if pickles:
            raise ModelError(hub.only_pickles(name, sorted(pickles), checkpoint.config))
        raise ModelError(f"--model {name}: has no weights. Expected model.safetensors. {HINT}")


def _check_tokenizer(name: str, folder: Path) -> None:
    files = tokenizer_files(folder)
    if not files:
        # transformers would make a tokenizer without words, and every text would be empty.
        expected = ", or ".join(" and ".join(names) for names in TOKENIZER_FILES)
        raise ModelError(
            f"--model {name}: no tokenizer in {folder}. Expected {expected}. Copy them from the model that this one "
            f"was made from, or save its processor there: processor.save_pretrained(...). {HINT}"
        )
    missing = [name for name in ("sentencepiece", "protobuf") if not [*importlib.metadata.distributions(name=name)]]
    if files[0].endswith(".model") and missing:
        raise ModelError(
            f"--model {name}: its tokenizer is {files[0]} without tokenizer.json. To read it, install what is missing: "
            f"pip install {' '.join(missing)}. {HINT}"
        )


def _fingerprint(folder: Path) -> str:
    """Return a hash of a local folder: of configs in full, of weights the size and evenly spaced blocks.

    Training and merging change every tensor; reading all of 15 GB to find a single changed byte would cost seconds.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.relative_to(folder).parts[0] == _CHECKPOINTS:
            continue
        if path.suffix in (".json", ".jinja", ".txt", ".model", ".safetensors") and path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
            with open(path, "rb") as file:
                if path.suffix != ".safetensors" or size <= _NUM_BLOCKS * _BLOCK:
                    digest.update(file.read())
                    continue
                for block in range(_NUM_BLOCKS):
                    file.seek((size - _BLOCK) * block // (_NUM_BLOCKS - 1))
                    digest.update(file.read(_BLOCK))
    return f"sha256:{digest.hexdigest()[:16]}"
