"""Captions in the files of other tools: COCO, kohya's sd-scripts, text files, imagefolder, CSV."""

from __future__ import annotations

import base64
import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip2cap.errors import InputError

EXPECTED = (
    "Expected captions: an output of `blip2cap caption`, COCO or kohya .json, a .csv or metadata.jsonl with file_name "
    "and text, or a folder of .txt files named after the images."
)
_NAMES = ("file_name", "image_path", "filename", "image")
_TEXTS = ("text", "caption", "captions", "texts")
"""Columns of tables, in order of preference."""
_ENCODED = "file_name_b64"
"""Column of names that are not valid UTF-8, in exports of blip2cap."""
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_SIDECARS = (".txt", ".caption")
_FORMULA = ("'=", "'+", "'-", "'@")
"""Starts of cells that `export --to csv` has quoted, so that no spreadsheet runs them as formulas."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """Names of images, each with a caption."""

    captions: Iterable[tuple[str, str]]
    """May be iterated once; raises InputError for what is no caption."""
    folder: str = ""
    """Folder that relative names are relative to; "" if it is not known."""
    stems: bool = False
    """True if names may have no suffix."""


def open_file(path: Path) -> Listed | None:
    """Open a file or folder with captions; None if it is expected to be an output of blip2cap.

    Raises InputError if it is neither.
    """
    if path.is_dir():
        return _open_folder(path)
    if path.name in _METADATA and not _is_own(path):
        return Listed(captions=_table(path), folder=str(path.parent))
    match path.suffix.lower():
        case ".json":
            return _open_json(path)
        case ".csv":
            return Listed(captions=_table(path))
        case ".parquet" | ".jsonl":
            return None if _is_own(path) else Listed(captions=_table(path), stems=True)
        case ".txt":
            raise _wrong(path, "a single text file")
    if path.is_file():
        raise _wrong(path, f"files ending in {path.suffix or 'nothing'} are not read")
    return None


def _open_folder(path: Path) -> Listed | None:
    """Open a folder: parts of an output, imagefolder, or text files."""
    if (path / ".blip2cap").is_dir() or any(path.glob("part-*.parquet")):
        return None
    for name in _METADATA:
        if (path / name).is_file():
            if _is_own(path / name):
                raise InputError(
                    f"--captions {path}: {name} in it is an output of blip2cap. Give {path / name} itself."
                )
            return open_file(path / name)
    return Listed(captions=_sidecars(path), folder=str(path), stems=True)


def _sidecars(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield a caption for each line of the text files below a folder."""
    num_files = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _SIDECARS:
                num_files += 1
                path = Path(parent, name)
                with _reading(path):
                    lines = path.read_text(encoding="utf-8-sig").split("\n")
                relative = os.path.relpath(os.path.join(parent, stem), folder)
                yield from ((relative, line) for line in lines)
    if not num_files:
        raise InputError(f"--captions {folder}: a folder without {' or '.join(_SIDECARS)} files. {EXPECTED}")


def _open_json(path: Path) -> Listed:
    """Open a file of COCO or kohya."""
    with _reading(path):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        return Listed(captions=_coco(path, content))
    if isinstance(content, dict) and all(isinstance(entry, dict) for entry in content.values()):
        entries = ((name, entry.get("caption", "")) for name, entry in content.items())
        return Listed(captions=_lines(path, entries), stems=True)
    if isinstance(content, list):
        raise _wrong(path, "a list without names of images, such as COCO results")
    raise _wrong(path, "neither COCO nor kohya")


def _coco(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"]:
            name, caption = names[annotation["image_id"]], annotation["caption"]
            yield _checked_name(path, "an annotation", name), _checked(path, "an annotation", caption)
    except (KeyError, TypeError) as error:
        raise _wrong(path, f"COCO with an entry that lacks {error}") from error


def _lines(path: Path, entries: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield a caption for each line of the texts of kohya, which has one text for an image."""
    for name, text in entries:
        _checked_name(path, "an entry", name)
        yield from ((name, line) for line in _checked(path, name, text).split("\n"))


def _table(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the captions of a table with a column of names and one of texts, or lists of texts."""
    for number, row in enumerate(_rows(path), start=1):
        if number == 1:
            name_column, text_column = _columns(path, row)
        name, texts = _checked_name(path, f"row {number}", row.get(name_column)), row.get(text_column)
        if encoded := row.get(_ENCODED):
            name = _decoded(path, f"row {number}", encoded)
        for text in texts if isinstance(texts, list) else (texts or "",):
            yield name, _checked(path, f"row {number}", text)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a .csv, .jsonl or .parquet file."""
    with _reading(path):
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches():
                    yield from batch.to_pylist()
            return
        with open(path, encoding="utf-8-sig", newline="") as lines:
            if path.suffix.lower() == ".csv":
                for row in csv.DictReader(lines):
                    yield {name: unquoted(value) for name, value in row.items() if isinstance(name, str)}
                return
            for line in lines:
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise _wrong(path, "a line is no object")
                    yield row


def _columns(path: Path, row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the columns of names and of texts; beside the names, a single column may have any name."""
    name = next((each for each in _NAMES if each in row), None)
    others = [each for each in row if each not in (name, _ENCODED)]
    text = next((each for each in _TEXTS if each in others), others[0] if len(others) == 1 else None)
    if name is None or text is None:
        raise _wrong(path, f"its columns are {', '.join(row)}")
    return name, text


def unquoted(value: Any) -> Any:
    """Undo what `export --to csv` does to cells that a spreadsheet would run."""
    return value[1:] if isinstance(value, str) and value.startswith(_FORMULA) else value


def _is_own(path: Path) -> bool:
    """Return whether a .jsonl or .parquet file has the columns of every output of blip2cap, or is empty."""
    if path.suffix.lower() == ".csv" or not path.is_file():
        return path.suffix.lower() != ".csv"
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            names = pq.read_schema(path).names
        except (OSError, pa.ArrowException):
            return True  # its reader says what is wrong
        return {"file_name_b64", "status"} <= {*names}
    with _reading(path), open(path, "rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    if not first:
        return True
    try:
        columns = json.loads(first)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, "its first line is not JSON") from error
    return isinstance(columns, dict) and {"file_name_b64", "status"} <= columns.keys()


def _checked(path: Path, where: str, text: Any) -> str:
    """Return a caption. Raises InputError for what is no text."""
    try:
        if isinstance(text, str):
            text.encode()
            return text
    except UnicodeEncodeError:
        pass
    raise _wrong(path, f"{where} has no caption but {text!r}")


def _checked_name(path: Path, where: str, name: Any) -> str:
    """Return the name of an image. Raises InputError for what is no text, or cannot be the name of a file."""
    if isinstance(name, str) and name:
        with suppress(UnicodeEncodeError):
            os.fsencode(name)
            return name
    raise _wrong(path, f"{where} has no name of an image but {name!r}")


def _decoded(path: Path, where: str, encoded: Any) -> str:
    try:
        return os.fsdecode(base64.b64decode(encoded, validate=True))
    except (TypeError, ValueError) as error:
        raise _wrong(path, f"{where} has no {_ENCODED} but {encoded!r}") from error


def _wrong(path: Path, reason: str) -> InputError:
    return InputError(f"--captions {path}: {reason}. {EXPECTED}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into an InputError."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"--captions {path}: cannot be read: {error.strerror or error}.") from error
    except (ValueError, csv.Error, RecursionError) as error:
        kind = "not valid UTF-8" if isinstance(error, UnicodeDecodeError) else f"damaged ({error})"
        raise InputError(f"--captions {path}: {kind}. {EXPECTED}") from error
