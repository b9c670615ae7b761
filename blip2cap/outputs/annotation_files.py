"""Files of annotations -> rows of named values, each with its place.

Covered: lists in .json (LAVIS, results), COCO, VQA, kohya's metadata, .jsonl, .csv, .parquet, folders with metadata of
Hugging Face or with text files. Outputs of blip2cap are recognised; `open.open_rows` reads them.
Not covered: Parquet files that hold the images themselves.
"""

from __future__ import annotations

import base64
import csv
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from blip2cap.errors import InputError
from blip2cap.outputs.json_entries import Entries, read_json, reading

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
OWN_COLUMNS = {"file_name", "file_name_b64", "status"}
"""Columns of every output of blip2cap."""
NAMES = ("file_name", "image_path", "filename", "image", "image_file", "path", "img")
"""Columns of names of images, in order of preference."""
_SIDECARS = (".txt", ".caption")
_FORMULA = ("'=", "'+", "'-", "'@")
"""Starts of cells that `export --to csv` has quoted, so that no spreadsheet runs them as formulas."""
_NUM_KEYS = 20
"""Most keys of an object that a message names: those of kohya are all names of images."""
Form: TypeAlias = Literal["own", "table", "text files", "list", "COCO", "VQA", "kohya"]
"""Form of a file or folder; `own` is an output of blip2cap."""


@dataclass(frozen=True, slots=True)
class Bad:
    """In place of a row: an entry that is none."""

    reason: str
    """One of `train.data.reasons.ERRORS`."""
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotations:
    """A file of annotations, or a folder with text files."""

    given: str
    """Name of the file as given; of imagefolder, that of its metadata."""
    form: Form
    folder: str
    """Folder that names of images are relative to, and places."""
    rows: Iterable[tuple[str, Any]]
    """Place and content of each row, an object if it is right. May be iterated once; raises InputError."""
    questions: Entries = field(default_factory=list)
    """Questions of VQA."""
    split: str = ""
    """`data_subtype` of VQA: train2014"""

    def objects(self, entries: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield whole place and content of rows or questions. Raises InputError for one that is no object."""
        for place, row in entries:
            where = str(Path(self.folder, place))
            if isinstance(row, Bad):
                raise InputError(f"{where}: {row.detail}. Repair or remove it.")
            if not isinstance(row, dict):
                shown = json.dumps(row)[:60]
                raise InputError(f"{where}: {shown} is not an object. Expected one, such as an image and its caption.")
            yield where, row


def open_annotations(given: str, *, expected: str) -> Annotations:
    """Open a file or folder that exists; `expected` ends the messages about one of no known form.

    Raises InputError if it cannot be read, or has no known form.
    """
    path = Path(given)
    if path.is_dir():
        return _open_folder(given, expected)
    folder, suffix = str(path.parent), path.suffix.lower()
    if suffix == ".json":
        return _open_json(given, expected)
    if suffix not in SUFFIXES:
        raise InputError(f"{given}: files ending in {suffix or 'nothing'} are not read. {expected}")
    is_own = suffix != ".csv" and _is_own(path)
    return Annotations(given=given, form="own" if is_own else "table", folder=folder, rows=_table_rows(path))


def _open_folder(given: str, expected: str) -> Annotations:
    """Open a folder: parts of an output, imagefolder, or text files beside images."""
    path = Path(given)
    if (path / ".blip2cap").is_dir() or any(path.glob("part-*.parquet")):
        return Annotations(given=given, form="own", folder=given, rows=())
    for name in METADATA:
        if (path / name).is_file():
            return open_annotations(str(path / name), expected=expected)
    return Annotations(given=given, form="text files", folder=given, rows=_sidecar_rows(path, expected))


def _sidecar_rows(folder: Path, expected: str) -> Iterator[tuple[str, Any]]:
    """Yield a row for each line of the text files below a folder. Raises InputError if there is none."""
    num_files = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _SIDECARS:
                num_files += 1
                path = Path(parent, name)
                with reading(path):
                    lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
                image = os.path.relpath(os.path.join(parent, stem), folder)
                place = os.path.relpath(path, folder)
                yield from ((f"{place}:{n}", {"file_name": image, "text": line}) for n, line in enumerate(lines, 1))
    if not num_files:
        raise InputError(
            f"{folder}: a folder without {' or '.join(_SIDECARS)} files, and without {' or '.join(METADATA)}. "
            f"{expected}"
        )


def _open_json(given: str, expected: str) -> Annotations:
    path = Path(given)
    content, folder = read_json(path), str(path.parent)
    if isinstance(content, list):
        return Annotations(given=given, form="list", folder=folder, rows=content)
    if content and all(isinstance(entry, dict) for entry in content.values()):
        rows = ((f'{path.name} "{name}"', {"file_name": name, **entry}) for name, entry in content.items())
        return Annotations(given=given, form="kohya", folder=folder, rows=rows)
    for name in ("images", "annotations", "questions"):
        if not isinstance(content.get(name, []), list):
            raise InputError(f"{given}: its {name} are no list. {expected}")
    images, annotations = content.get("images", []), content.get("annotations", [])
    if not {"annotations", "questions"} & content.keys():
        shown = ", ".join([*content][:_NUM_KEYS]) or "nothing in it"
        raise InputError(f"{given}: an object with {shown}{', ...' if len(content) > _NUM_KEYS else ''}. {expected}")
    return Annotations(
        given=given,
        form="COCO" if "images" in content and "questions" not in content else "VQA",
        folder=folder,
        rows=_with_names(images, annotations) if images else annotations,
        questions=content.get("questions", []),
        split=str(content.get("data_subtype", "")),
    )


def _with_names(images: Entries, annotations: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield each annotation of COCO with the file name of its image."""
    names: dict[str, Any] = {}
    for where, image in images:
        if not isinstance(image, dict) or not {"id", "file_name"} <= image.keys():
            yield where, Bad("absent key", "an image without id and file_name")
        elif names.setdefault(id_text(image["id"]), image["file_name"]) != image["file_name"]:
            detail = f"image id {image['id']} is {names[id_text(image['id'])]} and {image['file_name']}"
            yield where, Bad("mismatched ids", detail)
    for where, annotation in annotations:
        if not isinstance(annotation, dict) or "image_id" not in annotation:
            yield where, Bad("absent key", "an annotation without image_id")
        elif (name := names.get(id_text(annotation["image_id"]))) is None:
            yield where, Bad("mismatched ids", f"image_id {annotation['image_id']} is not among the images")
        else:
            yield where, {"file_name": name, **annotation}


def id_text(value: Any) -> str:
    """Return an id as text, "" for none: files of one data set write 42 and "42", and tables with a gap 42.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def decoded_name(encoded: Any) -> str:
    """Return the name that the column file_name_b64 holds. Raises TypeError or ValueError."""
    return os.fsdecode(base64.b64decode(encoded, validate=True))


def _table_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a table; its rows in CSV and Parquet are numbered as lines of a file are, from 1."""
    read = {".csv": _csv_rows, ".parquet": _parquet_rows}.get(path.suffix.lower(), _json_lines)
    with reading(path):
        yield from ((f"{path.name}:{number}", row) for number, row in read(path))


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    row = Bad("not an object", f"no JSON: {error}")
                yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                yield reader.line_num, {name: _value(name, cell) for name, cell in row.items() if isinstance(name, str)}
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: damaged: {error}.") from error


def _value(column: str, cell: Any) -> Any:
    """Undo what `export --to csv` does to cells that a spreadsheet would run, and to lists of captions."""
    if column == "texts" and isinstance(cell, str) and cell.startswith("["):
        with suppress(ValueError):
            return json.loads(cell)
    return cell[1:] if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            pictures = [each.name for each in file.schema_arrow if _holds_bytes(each.type)]
            others = [name for name in file.schema_arrow.names if name not in pictures]
            if pictures and not {*NAMES} & {*others}:
                raise InputError(
                    f"{path}: its column {pictures[0]} holds the images themselves. Expected a column with names of "
                    "files. Write the images to files first: docs/fine-tuning.md has a script that does."
                )
            number = 0
            for batch in file.iter_batches(columns=others if pictures else None):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a complete Parquet file: {str(error).splitlines()[0]}") from error


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return is_binary or (pa.types.is_struct(kind) and "bytes" in [each.name for each in kind])


def first_columns(path: Path) -> Collection[str] | None:
    """Return the columns of a table, by its first row; None if there is none, or it is damaged."""
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(path).names)
        except (OSError, pa.ArrowException):
            return None
    _, row = next(_table_rows(path), ("", None))
    return row if isinstance(row, dict) else None


def _is_own(path: Path) -> bool:
    """Return whether a table is an output of blip2cap; a damaged Parquet file is: its reader says what is wrong."""
    columns = first_columns(path)
    return path.suffix.lower() == ".parquet" if columns is None else {*columns} >= OWN_COLUMNS
