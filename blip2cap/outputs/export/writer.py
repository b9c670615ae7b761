"""What every format is to an export: one `Writer`, and what most of them have in common."""

from __future__ import annotations

import os
from typing import BinaryIO

from blip2cap.errors import UsageError
from blip2cap.outputs.export.atomic import WholeFile
from blip2cap.outputs.export.item import Item
from blip2cap.outputs.export.options import ExportOptions

COLLISION = "collision"
EMPTY = "empty"
EXISTING = "existing"
MISSING_IMAGE = "missing_image"
NOT_TEXT = "not_text"
OUTSIDE = "outside"
UNNAMEABLE = "unnameable"


class Writer:
    """One format. An export asks for the key of every item, opens, has each written unless there is a reason, finishes.

    `open`, `write` and `finish` raise OSError for what cannot be written.
    """

    one_text = True
    """It holds one text for an image: answers to several questions do not fit."""
    has_keys = True
    """No two items may have the same `key`."""
    needs_root = True
    """It needs to know where the images are."""
    default_out: str | None = None
    """None: --out has to be given, unless `out` says otherwise."""

    def __init__(self, options: ExportOptions, root: str) -> None:
        self.options = options
        self.root = root
        self.out = self.place()

    def place(self) -> str:
        """Say where the export goes."""
        if self.options.out is None and self.default_out is None:
            raise UsageError(f"--to {self.options.to}: nothing says where to write. Give --out PATH.")
        return self.options.out or self.default_out or ""

    def check(self) -> None:
        """Raise UsageError for a place that must not be written to; before anything is."""

    def key(self, item: Item) -> str:
        """Name what no other item may be, and no image; "" where nothing can collide."""
        return ""

    def reason(self, item: Item) -> str:
        """Say why an item is left out, "" if it is to be written."""
        return ""

    def open(self) -> None:
        """Prepare to write."""

    def write(self, item: Item) -> str:
        """Write one item; return why that could not be, or ""."""
        raise NotImplementedError

    def finish(self) -> None:
        """All items have been written."""

    def close(self) -> None:
        """Let go of everything that `open` has made; what has not been finished is removed."""


class FileWriter(Writer):
    """A format that is one file, there when it is complete."""

    one_text = has_keys = needs_root = False
    whole: WholeFile

    def check(self) -> None:
        """Refuse to replace a file unless told to."""
        if os.path.isdir(self.out):
            raise UsageError(f"--out {self.out}: a folder. Expected the name of a file.")
        if self.options.existing != "overwrite" and os.path.lexists(self.out):
            raise UsageError(f"{self.out} exists. Use another --out, or --existing overwrite.")

    def open(self) -> None:
        """Begin the file under a temporary name."""
        self.whole = WholeFile(self.out)

    @property
    def file(self) -> BinaryIO:
        """What to write to."""
        return self.whole.file

    def finish(self) -> None:
        """Give the file its name."""
        self.whole.commit()

    def close(self) -> None:
        """Remove what has not been finished."""
        self.whole.discard()
