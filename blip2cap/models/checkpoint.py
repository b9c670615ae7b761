"""A model's name -> a folder that is safe to load, without importing torch.

Refused, with the reason: folders without safetensors, with code of their own, or of another kind of model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip2cap.errors import ModelError, UsageError
from blip2cap.options import ModelOptions

TINY = Path(__file__).parent.parent / "tiny"
"""The model inside the package."""
KNOWN = Path(__file__).parent / "known"
"""The configurations of checkpoints on the hub, to measure them without their weights."""

_WANTED_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_BLOCK = 65536
_NUM_BLOCKS = 128
_HINT = "`--model tiny` needs no download."


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint on this machine."""

    name: str
    """As the user gave it; a folder's full path."""
    folder: Path
    commit: str
    """The hub's commit, a fingerprint of the files of a local folder, or `random`: without weights."""
    family: str
    """opt, t5 or instructblip: decides prompts and how the image meets the text."""
    config: dict[str, Any]
    """The content of config.json."""

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return int((self.config.get("vision_config") or {}).get("image_size", 224))

    @property
    def text_type(self) -> str:
        """The language model's type: opt, t5 or llama."""
        return str((self.config.get("text_config") or {}).get("model_type", "opt"))


def find(options: ModelOptions) -> Checkpoint:
    """Find the checkpoint of a name. Raises ModelError that says why it cannot be used and what to do."""
    folder = TINY if options.name == "tiny" else Path(options.name).expanduser()
    if options.revision is not None and (options.random_weights or folder.is_dir()):
        raise UsageError(f"--revision {options.revision}: {options.name} is no model on the hub, it has no revisions.")
    if options.random_weights:
        return _find_configuration(options.name, folder)
    if options.name == "tiny":
        return _check("tiny", TINY, _fingerprint(TINY))
    if folder.is_dir():
        return _check(str(folder.resolve()), folder, _fingerprint(folder))
    if options.name.startswith((".", "/", "~")) or options.name.count("/") != 1:
        raise ModelError(
            f"--model {options.name}: no such folder. Expected `tiny`, a folder with config.json, "
            f"or a hub id like Salesforce/blip2-opt-2.7b. {_HINT}"
        )
    folder = _download(options)
    return _check(options.name, folder, folder.name)


def _find_configuration(name: str, folder: Path) -> Checkpoint:
    """Find what there is to know of a model but its weights: in a folder, or among the known ones."""
    known = {path.stem: path for path in sorted(KNOWN.glob("*.json"))}
    if folder.is_dir():
        shown = "tiny" if folder == TINY else str(folder.resolve())
        return _check_config(shown, folder / "config.json", "random")
    path = known.get(name.removeprefix("Salesforce/"))
    if path is None:
        raise ModelError(
            f"--model {name}: no known size. Expected with --random-weights one of {', '.join(known)}, "
            f"or a folder with config.json. {_HINT}"
        )
    return _check_config(name, path, "random")


def _download(options: ModelOptions) -> Path:
    """Return the folder of a hub id's snapshot: the cached one if it is whole, else fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def snapshot(local_only: bool) -> Path:
        return Path(
            snapshot_download(
                options.name, revision=options.revision, allow_patterns=_WANTED_FILES, local_files_only=local_only
            )
        )

    try:
        try:
            cached = snapshot(local_only=True)
            _check(options.name, cached, cached.name)
            return cached
        except (LocalEntryNotFoundError, ModelError):
            return snapshot(local_only=False)
    except HFValidationError as error:
        raise ModelError(f"--model {options.name}: neither a folder nor a hub id. {_HINT}") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"--model {options.name}: not in the local cache, and the hub cannot be reached. "
            f"Check the network and the name. {_HINT}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"--model {options.name}: cannot be fetched from the hub: {error}. {_HINT}") from error


def _check(name: str, folder: Path, commit: str) -> Checkpoint:
    checkpoint = _check_config(name, folder / "config.json", commit)
    _check_weights(name, folder)
    return checkpoint


def _check_config(name: str, path: Path, commit: str) -> Checkpoint:
    folder = path.parent
    if not path.is_file():
        raise ModelError(f"--model {name}: {folder} has no {path.name}. Expected a BLIP-2 checkpoint. {_HINT}")
    if (folder / "adapter_config.json").exists():  # transformers would load the model that it names instead
        raise ModelError(
            f"--model {name}: an adapter (adapter_config.json). Expected a whole model: merge it first. {_HINT}"
        )
    config = read_json(name, path)
    family = _family(name, config)
    if _has_code(name, folder, config):
        raise ModelError(
            f"--model {name}: its configuration asks for code of its own (auto_map), which blip2cap never runs. {_HINT}"
        )
    return Checkpoint(name=name, folder=folder, commit=commit, family=family, config=config)


def _family(name: str, config: dict[str, Any]) -> str:
    model_type = config.get("model_type")
    text_type = (config.get("text_config") or {}).get("model_type", "opt")
    if "Blip2ForImageTextRetrieval" in (config.get("architectures") or ()):
        raise ModelError(f"--model {name}: an image-text matching model, which writes no text. {_HINT}")
    if model_type == "instructblip" and text_type in ("t5", "llama"):
        return "instructblip"
    if model_type == "blip-2" and text_type in ("opt", "t5"):
        return str(text_type)
    raise ModelError(
        f"--model {name}: model_type {model_type!r} with language model {text_type!r}. "
        f"Expected blip-2 (opt, t5) or instructblip (t5, llama). {_HINT}"
    )


def _has_code(name: str, folder: Path, config: dict[str, Any]) -> bool:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    parts += [read_json(name, path) for path in folder.glob("*_config.json")]
    return any("auto_map" in part for part in parts)


def _check_weights(name: str, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(name, index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"--model {name}: {index.name} lists no weights. Fetch it again. {_HINT}")
        files = sorted({str(file) for file in weight_map.values()})
        # transformers would open a file of another kind with torch.load, and follow a path to anywhere.
        others = [file for file in files if not file.endswith(".safetensors") or Path(file).name != file]
        if others:
            raise ModelError(
                f"--model {name}: {index.name} names {', '.join(others)}. "
                f"Expected .safetensors files beside it. {_HINT}"
            )
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise ModelError(
                f"--model {name}: weight files are missing: {', '.join(missing)}. Fetch them again. {_HINT}"
            )
    elif not (folder / "model.safetensors").is_file():
        pickles = [path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in folder.glob(pattern)]
        found = f"only {', '.join(sorted(pickles))}, which may run code when loaded" if pickles else "no weights"
        raise ModelError(f"--model {name}: has {found}. Expected model.safetensors. {_HINT}")


def read_json(name: str, path: Path) -> dict[str, Any]:
    """Read one of a checkpoint's files. Raises ModelError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"--model {name}: {path.name} cannot be read: {error}. {_HINT}") from error
    if not isinstance(content, dict):
        raise ModelError(f"--model {name}: {path.name} cannot be read: expected an object. {_HINT}")
    return content


def _fingerprint(folder: Path) -> str:
    """Name the content of a local folder: configs in full, of weights the size and blocks from beginning to end.

    Training and merging change every tensor; to read 15 GB for the case of a single changed byte would cost seconds.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".txt", ".model", ".safetensors") and path.is_file():
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
