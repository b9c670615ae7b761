"""Metadata that trainers read beside a folder of images: Hugging Face imagefolder, and kohya's sd-scripts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

from blip2cap.errors import UsageError
from blip2cap.outputs.export.item import Item
from blip2cap.outputs.export.reasons import COLLISION, IN_ARCHIVE, MISSING_IMAGE, OUTSIDE, UNNAMEABLE
from blip2cap.outputs.export.tables import csv_writer, parquet_rows
from blip2cap.outputs.export.writer import FileWriter
from blip2cap.rows import Column, Row, Schema

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Names that imagefolder takes for metadata, anywhere in the tree."""


class Listed(FileWriter):
    """A file that names images which its reader expects to find; the output name is the name in it.

    With --out, the images of archives are extracted to the folder of that file.
    """

    one_text = unique_names = needs_root = writes_entries = True

    @cached_property
    def folder(self) -> str:
        """Real path of the folder of the file."""
        return os.path.realpath(os.path.dirname(self.out) or ".")

    def skip_reason(self, item: Item) -> str:
        """Leave out images that the reader would not find."""
        if item.member and self.options.out is None:
            return IN_ARCHIVE
        if not self.images.has(item):
            return MISSING_IMAGE
        if not item.is_utf8:
            return UNNAMEABLE
        if item.member and not self.is_below(os.path.join(self.folder, item.path_in_out)):
            return OUTSIDE
        return "" if self.output_name(item) else OUTSIDE

    def write(self, item: Item) -> str:
        """Extract the image if it is in an archive, and write one entry."""
        extracted = self.extract(item) if item.member else ""
        if item.member and not extracted:
            return COLLISION
        self.add(item, extracted)
        return ""

    def add(self, item: Item, extracted: str) -> None:
        """Write one entry; `extracted` is the path of the image in `folder` if it was in an archive."""
        raise NotImplementedError


class ImageFolder(Listed):
    """`metadata.jsonl`, `.csv` or `.parquet` in the tree of images, as `load_dataset("imagefolder")` reads it."""

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self.root)

    def output_path(self) -> str:
        """Return the file, by default metadata.jsonl in the folder of the images."""
        out = self.options.out or self.root
        if not out:
            raise UsageError("--to imagefolder: nothing says where the images are. Give --images DIR, or --out DIR.")
        is_folder = os.path.isdir(out) or out.endswith("/") or not os.path.splitext(out)[1]
        return os.path.join(out, _METADATA[0]) if is_folder else out

    def check(self) -> None:
        """Refuse other names, and a second metadata file, which would make the reader fail."""
        if os.path.basename(self.out) not in _METADATA:
            raise UsageError(f"--out {self.out}: expected a folder, or a file called {' or '.join(_METADATA)}.")
        super().check()
        for folder, _, names in os.walk(self.folder):
            for name in _METADATA:
                if name in names and (folder, name) != (self.folder, os.path.basename(self.out)):
                    raise UsageError(
                        f"{os.path.join(folder, name)} is there: imagefolder reads one file of metadata only. "
                        "Move it away, or replace it with --out and --existing overwrite."
                    )

    def output_name(self, item: Item) -> str:
        """Return the image relative to the folder of the metadata, with `/`; "" if it is not below it."""
        if item.member:
            return item.path_in_out
        image = os.path.join(self._real_root, item.path_in_root) if item.path_in_root else item.image_path
        name = os.path.relpath(image, self.folder)
        return "" if name == ".." or name.startswith("../") else name

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open the file in the format that its name says."""
        self._column = self.options.column or "text"
        self._schema = Schema((Column("file_name"), Column(self._column)))
        os.makedirs(self.folder, exist_ok=True)
        with super().writing(), ExitStack() as stack:
            self._add: Callable[[Row], Any] = lambda row: self.file.write(as_line(row.columns))
            if self.out.endswith(".parquet"):
                self._add = stack.enter_context(parquet_rows(self.file, self._schema))
            elif self.out.endswith(".csv"):
                table = csv_writer(self.file)
                table.writerow(("file_name", self._column))
                self._add = lambda row: table.writerow(row.columns.values())  # unquoted: no spreadsheet reads this
            yield

    def add(self, item: Item, extracted: str) -> None:
        """Write one row."""
        self._add(self._schema.row(**{"file_name": extracted or self.output_name(item), self._column: item.text}))


class Kohya(Listed):
    """`meta_cap.json`, or, if --out ends in .jsonl, a line for each image."""

    default_out = "meta_cap.json"

    def check(self) -> None:
        """Refuse extensions that the reader does not know."""
        if not self.out.endswith((".json", ".jsonl")):
            raise UsageError(f"--out {self.out}: must end in .json, or in .jsonl for a line for each image.")
        super().check()

    @property
    def _is_jsonl(self) -> bool:
        return self.out.endswith(".jsonl")

    def output_name(self, item: Item) -> str:
        """Return the key that sd-scripts expects: the full path, or the path below the images without its suffix."""
        return self._key(item, item.path_in_out)

    def _key(self, item: Item, extracted: str) -> str:
        if self._is_jsonl or self.options.full_path:
            return os.path.normpath(os.path.join(self.folder, extracted) if item.member else item.image_path)
        return os.path.splitext(extracted if item.member else item.path_in_root)[0]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open the file."""
        self._is_empty = True
        with super().writing():
            yield
            if not self._is_jsonl:
                self.file.write(b"{}" if self._is_empty else b"\n}")

    def add(self, item: Item, extracted: str) -> None:
        """Write one entry."""
        key = self._key(item, extracted)
        if self._is_jsonl:
            size = [item.row.width, item.row.height]
            self.file.write(as_line({"image_path": key, "caption": item.lines, "image_size": size}))
        else:
            entry = json.dumps({key: {"caption": item.lines}}, indent=2)
            self.file.write((b"{\n" if self._is_empty else b",\n") + entry[2:-2].encode())
        self._is_empty = False


def as_line(columns: Mapping[str, Any]) -> bytes:
    """Return one line of JSON; all but ASCII is escaped, so that no reader finds another line end in it."""
    return json.dumps(columns).encode() + b"\n"
