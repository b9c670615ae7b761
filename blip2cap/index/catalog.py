"""index.json: the segments that make an index, and the settings that all of its embeddings share."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blip2cap import __version__
from blip2cap.errors import InputError, OutputRefusedError
from blip2cap.outputs.files import OS_FILES, Files, read_blocks, write_whole

NAME = "index.json"
FORMAT_VERSION = 1
UPDATE = "Run `blip2cap index` with the same inputs again"
_MOST_BYTES = 64 << 20
"""A larger index.json is not read: it is something else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentEntry:
    """One segment: a folder of files that hold the embeddings of the images of one update."""

    name: str
    """Name of its folder."""
    num_vectors: int
    """Number of images with embeddings, removed ones too."""
    images: str
    """Name of the file in it that lists its images, which changes with each update that changes the list."""
    checksums: Mapping[str, int]
    """CRC-32 of each of its files but embeddings.parquet, whose pages have their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """Content of index.json."""

    settings: Mapping[str, Any]
    """Settings of the run that made the embeddings; every segment has the same."""
    shape: tuple[int, int]
    """Rows of an image and length of a row: (32, 256)."""
    centre: Sequence[float] = ()
    """Mean row, which is subtracted before a sign is taken; () without any row."""
    num_centre_images: int = 0
    """Number of images that the index had when the centre was computed."""
    codes: str = "codes-1.npy"
    """Name of the codes in every segment; another one when the centre was computed anew."""
    segments: tuple[SegmentEntry, ...] = ()
    merged: tuple[str, ...] = ()
    """Names of folders of segments whose images others have now, and which are to be removed."""
    blip2cap_version: str = __version__
    format_version: int = field(default=FORMAT_VERSION)

    def as_json(self) -> bytes:
        """Return the content of the file."""
        return json.dumps({"format": "blip2cap index", **asdict(self)}, indent=1).encode() + b"\n"

    def write(self, folder: Path, files: Files = OS_FILES) -> None:
        """Replace index.json of a folder atomically. Raises OSError."""
        write_whole(files, folder / NAME, self.as_json())

    @classmethod
    def read(cls, folder: Path, files: Files = OS_FILES) -> Catalog:
        """Read index.json of a folder.

        Raises InputError if there is no index, OutputRefusedError if it is damaged or of a later release.
        """
        path = folder / NAME
        try:
            if files.stat(path).st_size > _MOST_BYTES:
                raise ValueError("larger than any index.json")
            content = json.loads(b"".join(read_blocks(files, path)))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(_no_index(folder)) from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}. Expected an index of blip2cap.") from error
        except (ValueError, RecursionError) as error:
            raise damaged(path, str(error)) from error
        if not isinstance(content, dict) or content.pop("format", None) != "blip2cap index":
            raise InputError(f"{folder}: {NAME} is not of blip2cap. Expected a folder made by `blip2cap index`.")
        if content.get("format_version") != FORMAT_VERSION:
            raise OutputRefusedError(
                f"{folder} has format {content.get('format_version')}, this blip2cap reads {FORMAT_VERSION}. Install "
                f"blip2cap {content.get('blip2cap_version')}, or build another index."
            )
        try:
            return cls._parse(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(path, f"no field {error}" if isinstance(error, KeyError) else str(error)) from error

    @classmethod
    def _parse(cls, content: dict[str, Any]) -> Catalog:
        rows, length = (int(value) for value in content.pop("shape"))
        entries = tuple(
            SegmentEntry(
                name=_plain_name(each["name"]),
                num_vectors=int(each["num_vectors"]),
                images=_plain_name(each["images"]),
                checksums={str(name): int(value) for name, value in each["checksums"].items()},
            )
            for each in content.pop("segments")
        )
        merged = tuple(map(_plain_name, content.pop("merged")))
        _plain_name(content["codes"])
        found = cls(shape=(rows, length), segments=entries, merged=merged, **content)
        if not isinstance(found.settings, dict) or len(found.centre) not in (0, length) or min(rows, length) < 1:
            raise ValueError("settings, shape and centre do not fit each other")
        return found


def _plain_name(name: Any) -> str:
    """Check a name from the file: it must not lead out of the folder."""
    if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
        raise ValueError(f"name {name!r}")
    return name


def damaged(path: Path, reason: str) -> OutputRefusedError:
    """Return the error for a file of an index that cannot be used."""
    if path.suffix == ".npy":
        remedy = f"{UPDATE}, with --check: it is rebuilt from embeddings.parquet, without the model."
    elif not re.fullmatch(r"segment-\d{6,}", path.parent.name):
        remedy = "Restore it from a copy, or build another index with another --out."
    else:
        remedy = f"Restore it from a copy, or remove {path.parent}. {UPDATE}: its images are embedded again."
    return OutputRefusedError(f"{path} is damaged: {reason}. {remedy}")


def _no_index(folder: Path) -> str:
    if not os.path.lexists(folder):
        return f"{folder}: no such index. Expected a folder made by `blip2cap index`."
    if not folder.is_dir():
        return f"{folder}: a file. Expected an index, a folder made by `blip2cap index`."
    return f"{folder}: not an index, it has no {NAME}. Expected a folder made by `blip2cap index`."
