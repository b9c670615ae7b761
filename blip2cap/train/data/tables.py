"""Files of annotations -> the rows to train on; entries that are none are problems."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blip2cap.errors import InputError
from blip2cap.outputs.annotation_files import Annotations, Bad, decoded_name, open_annotations
from blip2cap.outputs.open import open_rows, read_manifest
from blip2cap.outputs.read import image_name
from blip2cap.train.data.table import Table
from blip2cap.train.data.vqa_files import VqaFiles

EXPECTED = (
    "Expected COCO, VQA, LAVIS or kohya .json, .jsonl, .csv, .parquet, a folder with metadata.jsonl or .txt files, or "
    "rows of blip2cap."
)


def open_table(given: str, vqa: VqaFiles) -> Table | None:
    """Read a file or folder; None for a file of the VQA challenge, which is added to `vqa`.

    Raises InputError if it cannot be read, or has no known form.
    """
    if not os.path.exists(given):
        raise InputError(f"{given}: no such file or folder. Paths are relative to {os.getcwd()}.")
    found = open_annotations(given, expected=EXPECTED)
    table = Table(given=found.given, rows=[], folder=found.folder, lists_answers=found.form == "list")
    may_lack_values = found.given.lower().endswith((".csv", ".parquet"))
    for where, row in _own_parts(given) if found.form == "own" and os.path.isdir(found.given) else found.rows:
        if isinstance(row, Bad):
            table.report(row.reason, where, row.detail)
        elif may_lack_values:
            table.rows.append((where, {name: value for name, value in row.items() if value is not None}))
        else:
            table.rows.append((where, row))
    if found.form == "VQA":
        _add_vqa(table, found, vqa)
        return None
    if found.form == "own":
        _keep_ok(table)
    return table


def _own_parts(folder: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a folder of parts."""
    for number, row in enumerate(open_rows(folder), start=1):
        columns = {**row.as_dict(), "file_name": image_name(row), "file_name_b64": ""}
        yield f"{Path(folder).name}:{number}", columns


def _add_vqa(table: Table, found: Annotations, vqa: VqaFiles) -> None:
    if any(isinstance(row, dict) and "caption" in row for _, row in table.rows):
        raise InputError(
            f"{table.given}: annotations without images. Expected COCO's whole object: its list of images has the "
            "names of the files."
        )
    vqa.given.append(table.given)
    vqa.questions += found.questions
    vqa.annotations += table.rows
    vqa.problems += table.problems
    vqa.split = vqa.split or found.split


def _keep_ok(table: Table) -> None:
    """Keep the ok rows of a run of blip2cap, whose names are relative to the run's folder."""
    manifest = read_manifest(table.given)
    table.folder = str(manifest.settings.get("input_root", "")) if manifest else table.folder
    rows, table.rows = table.rows, []
    for where, row in rows:
        if isinstance(row, dict) and row.get("status") == "failed":
            table.report("failed row", where, f"{row.get('file_name')}: {row.get('error')}")
            continue
        if isinstance(row, dict) and row.get("file_name_b64"):
            try:
                row["file_name"] = decoded_name(row["file_name_b64"])
            except (TypeError, ValueError):
                table.report("wrong type", where, f"file_name_b64 is {row['file_name_b64']!r}, no encoded name")
                continue
        table.rows.append((where, row))
