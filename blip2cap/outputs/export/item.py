"""One row to export: the paths of its image, and its text with prefix and suffix."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from blip2cap.outputs.export.options import ExportOptions, folder_key
from blip2cap.outputs.read import image_name
from blip2cap.rows import Row

_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""Control characters, and everything that ends a line for some reader."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One row to write."""

    row: Row
    number: int
    """Number of the row in the results, from 1, failed ones included."""
    text: str
    """With prefix and suffix."""
    image_path: str
    """Absolute path of the image; "" if the folder of the images is not known."""
    path_in_root: str
    """Path of the image relative to the folder of the images, with `/`; "" if it is not below it."""
    path_in_out: str
    """Path of the image below an output folder: relative, and never leading out of it; "" if there is none."""

    @property
    def has_image(self) -> bool:
        """True if the image exists and can be read."""
        return bool(self.image_path) and os.path.isfile(self.image_path) and os.access(self.image_path, os.R_OK)

    @property
    def is_utf8(self) -> bool:
        """True if the name of the image is valid UTF-8."""
        return not self.row.file_name_b64


class Items:
    """Makes items of rows. `root` is the folder of the images, "" if it is not known."""

    def __init__(self, options: ExportOptions, root: str) -> None:
        self.options = options
        self.root = os.path.abspath(root) if root else ""
        self.unmatched = {folder for affixes in (options.prefix, options.suffix) for folder in affixes if folder}
        """Folders with a prefix or suffix of their own in which no image has been found so far."""

    def item(self, row: Row, number: int) -> Item:
        """Return the item of a row: find its image, and add prefix and suffix to its text."""
        name = image_name(row)
        image = os.path.join(self.root, name) if self.root or os.path.isabs(name) else ""
        normal = os.path.normpath(image or name)
        if self.root and normal.startswith(below := self.root.rstrip("/") + "/"):
            path_in_root = path_in_out = normal.removeprefix(below)
        elif image:
            path_in_root, path_in_out = "", normal.lstrip("/")  # as tar does with absolute names
        else:
            path_in_root = path_in_out = "" if normal == ".." or normal.startswith("../") else normal
        folder = folder_key(os.path.dirname(row.file_name) + "/")
        prefix, suffix = self._affix(self.options.prefix, folder), self._affix(self.options.suffix, folder)
        return Item(
            row=row,
            number=number,
            text=f"{prefix}{row.text}{suffix}",
            image_path=image,
            path_in_root=path_in_root,
            path_in_out=path_in_out,
        )

    def _affix(self, affixes: Mapping[str, str], folder: str) -> str:
        """Return the text for the longest folder that contains `folder`."""
        while affixes and folder:
            if folder in affixes:
                self.unmatched.discard(folder)
                return affixes[folder]
            folder = "" if folder == "/" else os.path.dirname(folder)
        return affixes.get("", "")


def one_line(text: str) -> str:
    """Return a text on one line: readers take each line of a sidecar for a caption of its own."""
    return _NOT_IN_A_LINE.sub(" ", text).strip()
