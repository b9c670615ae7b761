"""The manifest of an output: the settings that its rows were made with, which a resumed run must share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blip2cap import __version__
from blip2cap.errors import OutputRefusedError
from blip2cap.outputs.files import OS_FILES, Files, read_blocks, write_whole
from blip2cap.rows import Schema
from blip2cap.tasks.registry import schema_of

SCHEMA_VERSION = 1

_FLAGS = {
    "model": "--model",
    "server": "--base-url",
    "prompt": "--prompt",
    "template": "--template",
    "dtype": "--dtype",
    "model_commit": "the model's commit",
    "input_root": "the input root",
    "command": "the command",
    "inputs": "the inputs",
    "null_separated": "--null",
    "questions": "the questions",
    "captions": "the content of --captions",
    "texts": "the texts",
    "shape": "the shape of the vectors",
    "regions": "the column of regions",
}
USE_ANOTHER = "Use another --out."
UNFINISHED, FINISHED = "unfinished", "finished"
_BEFORE = {"decode": "exact", "loop_guard": False, "trim_sentence": False, "strip": []}
"""Values of settings in manifests that are older than these settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Settings and counts of an output."""

    settings: Mapping[str, Any]
    """Everything that changes a result or a name: a resumed run must have the same."""
    created: str = ""
    """Time of creation, UTC, ISO 8601."""
    counts: Mapping[str, Any] = field(default_factory=dict)
    """Number of rows by status and error, at the end of the last run that ended normally."""
    state: str = ""
    """UNFINISHED from the start of a run until it has made all its rows, then FINISHED; "" in older outputs."""
    input_roots_before: Sequence[str] = ()
    """Earlier values of the setting `input_root`: the folder was renamed, see `moved`."""
    blip2cap_version: str = __version__
    schema_version: int = SCHEMA_VERSION

    @property
    def schema(self) -> Schema:
        """Columns of the rows. Raises OutputRefusedError for a task that this release does not know."""
        try:
            return schema_of(self.settings)
        except KeyError as error:
            raise OutputRefusedError(
                f"the rows were made by {error}, a command that blip2cap {__version__} does not have."
            ) from error

    @property
    def label(self) -> str:
        """Name of the column that tells the rows of an image apart, "" if there is none."""
        return self.schema.key

    def moved(self, root: str) -> Manifest:
        """Return the manifest of the same inputs in a folder that was renamed to `root`."""
        before = self.settings.get("input_root", "")
        if before == root:
            return self
        settings = {**self.settings, "input_root": root}
        return replace(self, settings=settings, input_roots_before=[*self.input_roots_before, before])

    def check(self, wanted: Mapping[str, Any], output: str, remedy: str = "") -> None:
        """Raise OutputRefusedError if `wanted` settings differ from these; the message names each difference."""
        if self.schema_version != SCHEMA_VERSION:
            raise OutputRefusedError(
                f"{output} has rows of schema {self.schema_version}, this blip2cap writes schema {SCHEMA_VERSION}. "
                f"{remedy or USE_ANOTHER}"
            )
        made, wanted = _BEFORE | {**self.settings}, _BEFORE | {**wanted}
        names = [name for name in {**made, **wanted} if made.get(name) != wanted.get(name)]
        if "command" in names:  # then other settings differ too, which explains nothing
            names = ["command"]
        if names:
            differences = "; ".join(
                f"{_flag(name)} was {_show(made.get(name))}, now {_show(wanted.get(name))}" for name in names
            )
            is_renamed = names == ["input_root"] and made.get("input_root") and wanted.get("input_root")
            renamed = " If only the folder was renamed: --same-inputs." if is_renamed else ""
            remedy = remedy or f"Give those again, or use another --out.{renamed}"
            raise OutputRefusedError(f"{output} was made with other settings: {differences}. {remedy}")

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON values; without fields that older releases lack, where these are empty."""
        content = asdict(self) | {"settings": dict(self.settings)}
        content["created"] = self.created or datetime.now(UTC).isoformat(timespec="seconds")
        for name in ("state", "input_roots_before"):
            if not content[name]:
                del content[name]
        return content

    def as_json(self) -> bytes:
        """Return the manifest as JSON."""
        return json.dumps(self.as_dict(), indent=2).encode()

    def write(self, path: Path, files: Files = OS_FILES) -> None:
        """Write the manifest atomically."""
        write_whole(files, path, self.as_json() + b"\n")

    @classmethod
    def read(cls, path: Path, files: Files = OS_FILES, remedy: str = "") -> Manifest | None:
        """Read a manifest, None if there is none. Raises OutputRefusedError if it is damaged or cannot be read."""
        try:
            return cls.from_json(b"".join(read_blocks(files, path)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputRefusedError(f"{path} cannot be read: {error.strerror}. Make it readable.") from error
        except (ValueError, TypeError) as error:
            remedy = remedy or (
                f"Restore it from a copy, or use another --out. Without {path.name}, `blip2cap show` and `export` "
                "still read the rows."
            )
            raise OutputRefusedError(f"{path} is damaged ({error}). {remedy}") from error

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Parse the result of `as_json`. Raises ValueError or TypeError."""
        manifest = cls(**json.loads(content))
        if not isinstance(manifest.settings, dict):
            raise TypeError("its settings are not an object")
        return manifest


def _flag(name: str) -> str:
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


def _show(value: Any) -> str:
    return "none" if value in (None, "", []) else json.dumps(value, ensure_ascii=False)
