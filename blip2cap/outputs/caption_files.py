"""Captions in the files of other tools: COCO, LAVIS, kohya's sd-scripts, text files, imagefolder, CSV."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from blip2cap.errors import InputError
from blip2cap.outputs.annotation_files import METADATA, NAMES, Annotations, decoded_name, open_annotations

EXPECTED = (
    "Expected captions: an output of `blip2cap caption`, COCO, LAVIS or kohya .json, a .csv or metadata.jsonl with "
    "file_name and text, or a folder of .txt files named after the images."
)
_TEXTS = ("text", "caption", "captions", "texts")
"""Columns of texts in tables, in order of preference."""
_COLUMNS = {"COCO": "caption", "kohya": "caption", "text files": "text"}
"""Column of texts in forms that have one."""
_ENCODED = "file_name_b64"
"""Column of names that are not valid UTF-8, in exports of blip2cap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """Names of images, each with a caption."""

    captions: Iterable[tuple[str, str]]
    """May be iterated once; raises InputError for what is no caption."""
    folder: str = ""
    """Folder that relative names are relative to; "" if it is not known."""
    stems: bool = False
    """True if names may have no suffix."""


def open_file(given: str) -> Listed | None:
    """Open a file or folder with captions; None for an output of blip2cap.

    Raises InputError if it is neither.
    """
    found = open_annotations(given, expected=EXPECTED)
    is_metadata = os.path.basename(found.given) in METADATA
    if found.form == "own":
        if found.given != given:
            name = os.path.basename(found.given)
            raise InputError(f"{given}: {name} in it is an output of blip2cap. Give {found.given} itself.")
        return None
    return Listed(
        captions=_captions(found),
        folder=found.folder if is_metadata or found.form == "text files" else "",
        stems=found.form != "COCO",
    )


def _captions(found: Annotations) -> Iterator[tuple[str, str]]:
    """Yield the captions of each row; those of kohya are the lines of a text."""
    name_column, text_column = "file_name", _COLUMNS.get(found.form, "")
    for where, row in found.objects(found.rows):
        if not text_column:
            name_column, text_column = _columns(where, row)
        name, texts = _checked_name(where, row.get(name_column)), row.get(text_column)
        if encoded := row.get(_ENCODED):
            try:
                name = decoded_name(encoded)
            except (TypeError, ValueError) as error:
                raise _wrong(where, f"no {_ENCODED} but {encoded!r}") from error
        if found.form == "COCO" and texts is None:
            raise _wrong(where, "an annotation without caption")
        if found.form == "kohya" and isinstance(texts, str):
            texts = texts.split("\n")
        for text in texts if isinstance(texts, list) else (texts or "",):
            yield name, _checked(where, text)


def _columns(where: str, row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the columns of names and of texts; beside the names, a single column may have any name."""
    name = next((each for each in NAMES if each in row), None)
    others = [each for each in row if each not in (name, _ENCODED)]
    text = next((each for each in _TEXTS if each in others), others[0] if len(others) == 1 else None)
    if name is None or text is None:
        raise _wrong(where, f"its columns are {', '.join(row)}")
    return name, text


def _checked(where: str, text: Any) -> str:
    """Return a caption. Raises InputError for what is no text."""
    if isinstance(text, str):
        with suppress(UnicodeEncodeError):
            text.encode()
            return text
    raise _wrong(where, f"no caption but {text!r}")


def _checked_name(where: str, name: Any) -> str:
    """Return the name of an image. Raises InputError for what is no text, or cannot be the name of a file."""
    if isinstance(name, str) and name:
        with suppress(UnicodeEncodeError):
            os.fsencode(name)
            return name
    raise _wrong(where, f"no name of an image but {name!r}")


def _wrong(where: str, reason: str) -> InputError:
    return InputError(f"{where}: {reason}. {EXPECTED}")
