"""One row to export: the paths of its image, and its texts with prefix and suffix."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from blip2cap import urls
from blip2cap.outputs.export.options import ExportOptions, folder_key
from blip2cap.outputs.read import image_name
from blip2cap.rows import Row
from blip2cap.source.walk import ARCHIVE_SUFFIXES

_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""Control characters, and everything that ends a line for some reader."""
_MEMBER = re.compile(f"(.+?)({'|'.join(map(re.escape, ARCHIVE_SUFFIXES))})#(.+)", re.IGNORECASE | re.DOTALL)
"""The name of a member of an archive, or of a row of a table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One row to write."""

    row: Row
    number: int
    """Number of the row in the results, from 1, failed ones included."""
    captions: tuple[str, ...]
    """The chosen captions of the row, at least one; an answer is one too."""
    prefix: str
    suffix: str
    image_path: str
    """Absolute path of the image; "" if the folder of the images is not known, or the image is in an archive."""
    archive: str
    """Absolute path or URL of the archive or table that the image is in; "" if there is none, or it is not known."""
    member: str
    """Name of the image in its archive, or number of its row; "" if it is a file."""
    path_in_root: str
    """Path of the image relative to the folder of the images, with `/`; "" if it is not below it.

    A member has the path that it would have next to its archive, in a folder with the name of the archive.
    """
    path_in_out: str
    """Path of the image below an output folder: relative, and never leading out of it; "" if there is none."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The captions with prefix and suffix."""
        return tuple(f"{self.prefix}{caption}{self.suffix}" for caption in self.captions)

    @property
    def text(self) -> str:
        """The first of the texts."""
        return f"{self.prefix}{self.captions[0]}{self.suffix}"

    @property
    def lines(self) -> str:
        """The texts, each on a line of its own, without those that are blank; a single one as it is."""
        if len(self.captions) == 1:
            return self.text
        return "\n".join(one_line(self.prefix + each + self.suffix) for each in self.captions if one_line(each))

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
        """Return the item of a row: find its image, and add prefix and suffix to its texts."""
        name, archive, member = image_name(row), "", ""
        folder = os.path.dirname(row.file_name)
        found = _MEMBER.fullmatch(name) if "#" in name else None
        if found and not os.path.isfile(os.path.join(self.root, name)):
            archive, member = found[1] + found[2], found[3]
            archive = archive if urls.scheme(archive) else self._absolute(archive)
            # A member is placed below a folder called as its archive, wherever its own name points.
            name = os.path.join(found[1].partition("://")[2] or found[1], os.path.normpath(f"/{member}").lstrip("/"))
            folder = os.path.dirname(name)
        image = self._absolute(name)
        normal = os.path.normpath(image or name)
        if self.root and normal.startswith(below := self.root.rstrip("/") + "/"):
            path_in_root = path_in_out = normal.removeprefix(below)
        elif image:
            path_in_root, path_in_out = "", normal.lstrip("/")  # as tar does with absolute names
        else:
            path_in_root = path_in_out = "" if normal == ".." or normal.startswith("../") else normal
        folder = folder_key(folder + "/")
        return Item(
            row=row,
            number=number,
            captions=self._chosen(row),
            prefix=self._affix(self.options.prefix, folder),
            suffix=self._affix(self.options.suffix, folder),
            image_path="" if member else image,
            archive=archive,
            member=member,
            path_in_root=path_in_root,
            path_in_out=path_in_out,
        )

    def _absolute(self, name: str) -> str:
        """Return the absolute path of a file; "" if its name is relative to a folder that is not known."""
        return os.path.join(self.root, name) if self.root or os.path.isabs(name) else ""

    def _chosen(self, row: Row) -> tuple[str, ...]:
        """Return the captions that are wanted of those of a row; a random one depends on its seed and the image."""
        which, seed = self.options.choice
        if which == "first" or not row.texts:
            return (row.text,)
        return row.texts if which == "all" else (random.Random(f"{seed} {row.key}").choice(row.texts),)

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
