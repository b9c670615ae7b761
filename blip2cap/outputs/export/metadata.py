"""What trainers read beside a folder of images: metadata for Hugging Face imagefolder, and for kohya's sd-scripts."""

from __future__ import annotations

import json
import os
from typing import Any

from blip2cap.errors import UsageError
from blip2cap.outputs.export.item import Item
from blip2cap.outputs.export.options import ExportOptions
from blip2cap.outputs.export.tables import CsvLines, ParquetRows
from blip2cap.outputs.export.writer import MISSING_IMAGE, OUTSIDE, UNNAMEABLE, FileWriter

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""What imagefolder takes for metadata, wherever it lies in the tree."""


class Listed(FileWriter):
    """A file that names images which its reader expects to find; the key is that name."""

    one_text = has_keys = needs_root = True

    def reason(self, item: Item) -> str:
        """Leave out what the reader would not find."""
        if not item.has_image:
            return MISSING_IMAGE
        if not item.is_text:
            return UNNAMEABLE
        return "" if self.key(item) else OUTSIDE


class ImageFolder(Listed):
    """`metadata.jsonl`, `.csv` or `.parquet` in the tree of images, as `load_dataset("imagefolder")` reads it."""

    def __init__(self, options: ExportOptions, root: str) -> None:
        super().__init__(options, root)
        self.folder = os.path.realpath(os.path.dirname(self.out) or ".")
        self._real_root = os.path.realpath(root)
        self.column = options.column or "text"

    def place(self) -> str:
        """Return the file, metadata.jsonl in the folder of the images unless said otherwise."""
        out = self.options.out or self.root
        return os.path.join(out, _METADATA[0]) if os.path.isdir(out) else out

    def check(self) -> None:
        """Refuse other names, and a second file of metadata: it would make the reader fail."""
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

    def key(self, item: Item) -> str:
        """Name the image as the file does: relative to its folder, with `/`; "" if it is not below it."""
        image = os.path.join(self._real_root, item.place) if item.place else os.path.normpath(item.image)
        name = os.path.relpath(image, self.folder)
        return "" if name == ".." or name.startswith("../") else name

    def open(self) -> None:
        """Begin the file."""
        super().open()
        self._parquet = ParquetRows(self.file) if self.out.endswith(".parquet") else None
        self._csv = CsvLines() if self.out.endswith(".csv") else None
        if self._csv:
            self.file.write(self._csv.line(["file_name", self.column]))

    def write(self, item: Item) -> str:
        """Write one row."""
        columns = {"file_name": self.key(item), self.column: item.text}
        if self._parquet:
            self._parquet.add(columns)
        elif self._csv:
            self.file.write(self._csv.line(list(columns.values())))  # as they are: no spreadsheet reads this
        else:
            self.file.write(as_line(columns))
        return ""

    def finish(self) -> None:
        """Give the file its name."""
        if self._parquet:
            self._parquet.finish({"file_name": "", self.column: ""})
        super().finish()

    def close(self) -> None:
        """Remove what has not been finished."""
        if self._parquet:
            self._parquet.close()
        super().close()


class Kohya(Listed):
    """`meta_cap.json`, or, if --out ends in .jsonl, a line for each image."""

    default_out = "meta_cap.json"

    def check(self) -> None:
        """Refuse endings that the reader would not know what to do with."""
        if not self.out.endswith((".json", ".jsonl")):
            raise UsageError(f"--out {self.out}: must end in .json, or in .jsonl for a line for each image.")
        super().check()

    @property
    def _as_lines(self) -> bool:
        return self.out.endswith(".jsonl")

    @property
    def _by_path(self) -> bool:
        return self._as_lines or self.options.full_path

    def key(self, item: Item) -> str:
        """Name the image as sd-scripts does: by its path, or by its place without suffix; "" if it has none."""
        return os.path.normpath(item.image) if self._by_path else os.path.splitext(item.place)[0]

    def open(self) -> None:
        """Begin the file."""
        super().open()
        self._num_written = 0

    def write(self, item: Item) -> str:
        """Write one entry."""
        if self._as_lines:
            size = [item.row.width, item.row.height]
            self.file.write(as_line({"image_path": self.key(item), "caption": item.text, "image_size": size}))
        else:
            entry = json.dumps({self.key(item): {"caption": item.text}}, indent=2)
            self.file.write((",\n" if self._num_written else "{\n").encode() + entry[2:-2].encode())
        self._num_written += 1
        return ""

    def finish(self) -> None:
        """Close the object."""
        if not self._as_lines:
            self.file.write(b"\n}" if self._num_written else b"{}")
        super().finish()


def as_line(columns: dict[str, Any]) -> bytes:
    """Write one line of JSON; all but ASCII is escaped, and so nothing in it ends a line for any reader."""
    return json.dumps(columns).encode() + b"\n"
