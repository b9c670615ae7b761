"""The interface of every format: one `Writer`, and what formats of one file share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from blip2cap.errors import UsageError
from blip2cap.outputs.export.item import Item
from blip2cap.outputs.export.options import ExportOptions
from blip2cap.outputs.files import OS_FILES, Files, replacing_stream
from blip2cap.outputs.manifest import Manifest

COLLISION = "collision"
EMPTY = "empty"
EXISTING = "existing"
MISSING_IMAGE = "missing_image"
NOT_TEXT = "not_text"
OUTSIDE = "outside"
UNNAMEABLE = "unnameable"


class Writer:
    """One format. Within `writing`, an export calls `write` for every item that has no `skip_reason`.

    `writing` and `write` raise OSError if something cannot be written.
    """

    one_text = True
    """The format holds one text for an image: answers to several questions do not fit."""
    unique_names = True
    """No two items may have the same `output_name`."""
    needs_root = True
    """The folder of the images has to be known."""
    default_out: str | None = None
    """Default of --out; None: it has to be given, unless `output_path` is overridden."""
    needs_count = False
    """`num_items` has to be known before `writing`."""
    num_items = 0
    """Number of rows that are ok and wanted."""
    extension = ""
    """Extension of sidecars, in formats that have them."""

    def __init__(
        self, options: ExportOptions, root: str, manifest: Manifest | None = None, files: Files = OS_FILES
    ) -> None:
        self.options, self.root, self.manifest, self.files = options, root, manifest, files
        self.out = self.output_path()

    def output_path(self) -> str:
        """Return the file or folder to write."""
        if self.options.out is None and self.default_out is None:
            raise UsageError(f"--to {self.options.to}: nothing says where to write. Give --out PATH.")
        return self.options.out or self.default_out or ""

    def check(self) -> None:
        """Raise UsageError, before anything is written, if the output must not be written there."""

    def output_name(self, item: Item) -> str:
        """Return the name of an item in the output, which no other item and no image may have; "" if it has none."""
        return ""

    def skip_reason(self, item: Item) -> str:
        """Return the reason to leave out an item, "" if it is to be written."""
        return ""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open the output for the block, and finish it after the block; an exception removes what is not finished."""
        yield

    def write(self, item: Item) -> str:
        """Write one item; return the reason if that was not possible, else ""."""
        raise NotImplementedError


class FileWriter(Writer):
    """A format that is one file, which appears when it is complete."""

    one_text = unique_names = needs_root = False
    file: BinaryIO

    def check(self) -> None:
        """Refuse to replace a file without --existing overwrite."""
        if os.path.isdir(self.out):
            raise UsageError(f"--out {self.out}: a folder. Expected the name of a file.")
        if self.options.existing != "overwrite" and os.path.lexists(self.out):
            raise UsageError(f"{self.out} exists. Use another --out, or --existing overwrite.")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open `file` under a temporary name."""
        with replacing_stream(self.files, Path(self.out)) as self.file:
            yield
