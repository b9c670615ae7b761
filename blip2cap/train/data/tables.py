"""Files of annotations -> rows of named values, each with its place.

Covered: lists in .json (LAVIS), COCO captions, VQA questions with annotations, kohya's metadata, .jsonl, .csv,
.parquet, folders with metadata of Hugging Face or with .txt files, and rows of blip2cap.
Not covered: Parquet files that hold the images themselves.
"""

from __future__ import annotations

import base64
import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blip2cap.errors import InputError
from blip2cap.outputs.caption_files import unquoted
from blip2cap.outputs.open import open_rows, read_manifest
from blip2cap.outputs.read import image_name
from blip2cap.train.data.json_entries import Entries, read_json
from blip2cap.train.data.table import Table
from blip2cap.train.data.vqa_files import VqaFiles

EXPECTED = (
    "Expected COCO, VQA, LAVIS or kohya .json, .jsonl, .csv, .parquet, a folder with metadata.jsonl or .txt files, or "
    "rows of blip2cap."
)
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_NUM_KEYS = 20
"""Most keys of an object that a message names."""
_SIDECARS = (".txt", ".caption")
_OWN = {"file_name", "file_name_b64", "status"}
"""Columns of every output of blip2cap."""


def open_table(given: str, vqa: VqaFiles) -> Table | None:
    """Read a file or folder; None for a file of the VQA challenge, which is added to `vqa`.

    Raises InputError if it cannot be read, or has no known form.
    """
    path = Path(given)
    if not path.exists():
        raise InputError(f"{given}: no such file or folder. Paths are relative to {os.getcwd()}.")
    if path.is_dir():
        return _open_folder(given, path)
    match path.suffix.lower():
        case ".json":
            return _open_json(given, path, vqa)
        case ".jsonl":
            return _with_own_rows(_read_lines(given, path))
        case ".csv":
            return Table(given=given, rows=list(_csv_rows(path)), folder=str(path.parent))
        case ".parquet":
            return _with_own_rows(Table(given=given, rows=list(_parquet_rows(path)), folder=str(path.parent)))
    raise InputError(f"{given}: files ending in {path.suffix or 'nothing'} are not read. {EXPECTED}")


def _open_folder(given: str, path: Path) -> Table:
    """Read a folder: parts of an output, imagefolder, or text files beside images."""
    if (path / ".blip2cap").is_dir() or any(path.glob("part-*.parquet")):
        rows: Entries = []
        for number, row in enumerate(open_rows(given), start=1):
            rows.append((f"{path.name}:{number}", {**row.as_dict(), "file_name": image_name(row), "file_name_b64": ""}))
        return _with_own_rows(Table(given=given, rows=rows, folder=given))
    for name in _METADATA:
        if (path / name).is_file():
            table = open_table(str(path / name), VqaFiles())
            assert table is not None
            return table
    sidecars = list(_sidecar_rows(path))
    if not sidecars:
        raise InputError(f"{given}: a folder without {', '.join(_METADATA)} or {' or '.join(_SIDECARS)} files.")
    return Table(given=given, rows=sidecars, folder=given)


def _sidecar_rows(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield a row for each line of the text files below a folder."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _SIDECARS:
                path = Path(parent, name)
                with _reading(path):
                    lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
                image = os.path.relpath(os.path.join(parent, stem), folder)
                place = os.path.relpath(path, folder)
                yield from ((f"{place}:{n}", {"file_name": image, "text": line}) for n, line in enumerate(lines, 1))


def _open_json(given: str, path: Path, vqa: VqaFiles) -> Table | None:
    content = read_json(path)
    folder = str(path.parent)
    if isinstance(content, list):
        return Table(given=given, rows=content, folder=folder, lists_answers=True)
    lists = {name for name, value in content.items() if isinstance(value, list)}
    if {"images", "annotations"} <= lists:
        table = Table(given=given, rows=[], folder=folder)
        _add_coco(table, content["images"], content["annotations"])
        return table
    if lists & {"questions", "annotations"}:
        annotations = content["annotations"] if "annotations" in lists else []
        if any(isinstance(each, dict) and "caption" in each for _, each in annotations):
            raise InputError(
                f"{given}: annotations without images. Expected COCO's whole object: its list of images has the names "
                "of the files."
            )
        vqa.given.append(given)
        vqa.questions += content["questions"] if "questions" in lists else ()
        vqa.annotations += annotations
        vqa.split = vqa.split or str(content.get("data_subtype", ""))
        return None
    if content and all(isinstance(entry, dict) for entry in content.values()):  # kohya
        rows = [(f'{path.name} "{name}"', {"file_name": name, **entry}) for name, entry in content.items()]
        return Table(given=given, rows=rows, folder=folder)
    shown = ", ".join([*content][:_NUM_KEYS]) or "nothing in it"
    raise InputError(f"{given}: an object with {shown}{', ...' if len(content) > _NUM_KEYS else ''}. {EXPECTED}")


def _add_coco(table: Table, images: Entries, annotations: Entries) -> None:
    """Add a row for each annotation, with the file name of its image."""
    names: dict[str, Any] = {}
    for where, image in images:
        if not isinstance(image, dict) or not {"id", "file_name"} <= image.keys():
            table.report("absent key", where, "an image without id and file_name")
        elif names.setdefault(str(image["id"]), image["file_name"]) != image["file_name"]:
            detail = f"image id {image['id']} is {names[str(image['id'])]} and {image['file_name']}"
            table.report("mismatched ids", where, detail)
    for where, annotation in annotations:
        if not isinstance(annotation, dict) or "image_id" not in annotation:
            table.report("absent key", where, "an annotation without image_id")
        elif (name := names.get(str(annotation["image_id"]))) is None:
            detail = f"image_id {annotation['image_id']} is not among the images"
            table.report("mismatched ids", where, detail)
        else:
            table.rows.append((where, {"file_name": name, **annotation}))


def _read_lines(given: str, path: Path) -> Table:
    """Read lines of JSON; one that is torn or damaged is a problem."""
    table = Table(given=given, rows=[], folder=str(path.parent))
    with _reading(path), open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path.name}:{number}"
                try:
                    table.rows.append((where, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))))
                except (ValueError, RecursionError) as error:
                    table.report("not an object", where, f"no JSON: {error}")
    return table


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with _reading(path), open(path, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            values = {name: unquoted(value) for name, value in row.items() if isinstance(name, str)}
            yield f"{path.name}:{reader.line_num}", {name: each for name, each in values.items() if each is not None}


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(path):
        try:
            with pq.ParquetFile(path) as file:
                for field_of in file.schema_arrow:
                    inner = [each.name for each in field_of.type] if pa.types.is_struct(field_of.type) else []
                    if pa.types.is_large_binary(field_of.type) or pa.types.is_binary(field_of.type) or "bytes" in inner:
                        raise InputError(
                            f"{path}: its column {field_of.name} holds the images themselves. Expected a column with "
                            "names of files: write the images to files first."
                        )
                number = 0
                for batch in file.iter_batches():
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{path.name}:{number}", {name: each for name, each in row.items() if each is not None}
        except pa.ArrowException as error:
            raise InputError(f"{path}: not a complete Parquet file: {str(error).splitlines()[0]}") from error


def _with_own_rows(table: Table) -> Table:
    """If the rows are those of a run of blip2cap, keep the ok ones, whose names are relative to the run's folder."""
    first = next((row for _, row in table.rows), None)
    if not (isinstance(first, dict) and first.keys() >= _OWN):
        return table
    manifest = read_manifest(table.given)
    table.folder = str(manifest.settings.get("input_root", "")) if manifest else table.folder
    rows, table.rows = table.rows, []
    for where, row in rows:
        if isinstance(row, dict) and row.get("status") == "failed":
            detail = f"{row.get('file_name')}: {row.get('error')}"
            table.report("failed row", where, detail)
            continue
        if isinstance(row, dict) and row.get("file_name_b64"):
            try:
                row["file_name"] = os.fsdecode(base64.b64decode(row["file_name_b64"], validate=True))
            except (TypeError, ValueError):
                table.report("wrong type", where, f"file_name_b64 is {row['file_name_b64']!r}, no encoded name")
                continue
        table.rows.append((where, row))
    return table


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        kind = "not valid UTF-8" if isinstance(error, UnicodeDecodeError) else f"damaged: {error}"
        raise InputError(f"{path}: {kind}. {EXPECTED}") from error
