"""One row on its way into a format: where its image lies, and the text that is written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from blip2cap.outputs.export.options import ExportOptions, folder_key
from blip2cap.outputs.read import image_name
from blip2cap.rows import Row

_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""Controls and everything that ends a line for some reader."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One row that is to be written."""

    row: Row
    number: int
    """Of its row in the results, failed ones counted, from 1."""
    text: str
    """With prefix and suffix."""
    image: str
    """Where its image lies, absolute; "" if nobody knows the folder of the images."""
    place: str
    """Its image relative to the folder of the images, with `/`; "" if it is not below it."""
    landing: str
    """A name that stays below any folder that it is put under; "" if there is none."""

    @property
    def has_image(self) -> bool:
        """Whether the image is there and can be read."""
        return bool(self.image) and os.path.isfile(self.image) and os.access(self.image, os.R_OK)

    @property
    def is_text(self) -> bool:
        """Whether the name of its image can be written in UTF-8."""
        return not self.row.file_name_b64


class Items:
    """Makes items of rows. `root` is the folder of the images, "" if nobody knows it."""

    def __init__(self, options: ExportOptions, root: str) -> None:
        self.options = options
        self.root = os.path.abspath(root) if root else ""
        self.unmatched = {folder for affixes in (options.prefix, options.suffix) for folder in affixes if folder}
        """Folders with a text of their own that no image has been seen in."""

    def item(self, row: Row, number: int) -> Item:
        """Find the image of a row, and give its text prefix and suffix."""
        name = image_name(row)
        image = os.path.join(self.root, name) if self.root or os.path.isabs(name) else ""
        place = landing = self._below(os.path.normpath(image)) if image else _inside(os.path.normpath(name))
        if not landing and image:
            landing = os.path.normpath(image).lstrip("/")  # as tar does with absolute names
        return Item(row=row, number=number, text=self._edit(row), image=image, place=place, landing=landing)

    def _below(self, path: str) -> str:
        root = self.root.rstrip("/") + "/"
        return path.removeprefix(root) if self.root and path.startswith(root) else ""

    def _edit(self, row: Row) -> str:
        folder = folder_key(os.path.dirname(row.file_name) + "/")
        return f"{self._affix(self.options.prefix, folder)}{row.text}{self._affix(self.options.suffix, folder)}"

    def _affix(self, affixes: Mapping[str, str], folder: str) -> str:
        """Look up the text for the longest folder that holds `folder`."""
        while affixes and folder:
            if folder in affixes:
                self.unmatched.discard(folder)
                return affixes[folder]
            folder = "" if folder == "/" else os.path.dirname(folder)
        return affixes.get("", "")


def one_line(text: str) -> str:
    """Write a text on one line: for a reader, each line of a sidecar is a caption of its own."""
    return _NOT_IN_A_LINE.sub(" ", text).strip()


def _inside(name: str) -> str:
    """Return a relative name, "" if it leads out of the folder that it is relative to."""
    return "" if name == ".." or name.startswith(("../", "/")) else name
