"""The images of items: files, members of tar archives, and rows of tables, read from where they are.

Covered: everything that a run names `ARCHIVE#MEMBER`, local or behind a URL.
Not covered: images behind URLs of their own.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter

from blip2cap import urls
from blip2cap.decode.read import read
from blip2cap.errors import ImageError, InputError
from blip2cap.options import MAX_BYTES, DecodeOptions
from blip2cap.outputs.export.item import Item
from blip2cap.records import ImageRef
from blip2cap.source.buckets import open_url
from blip2cap.source.parquet import ParquetTable, TableRows
from blip2cap.source.tar import TarArchive
from blip2cap.source.walk import IMAGE_SUFFIXES

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
"""Format -> suffix, where that is not the name of the format."""


class Images:
    """Finds and reads the images of items. Rows of one archive follow each other, so one archive is open at a time."""

    def __init__(self, image_column: str | None = None) -> None:
        self.image_column = image_column
        self._path = ""
        self._archive: _Tar | _Table | None = None

    def has(self, item: Item) -> bool:
        """Return whether the image exists and can be read."""
        if not item.member:
            return bool(item.image_path) and os.path.isfile(item.image_path) and os.access(item.image_path, os.R_OK)
        ref = self._find(item)
        return ref is not None and not ref.error

    def read(self, item: Item) -> bytes:
        """Return the bytes of the image. Raises ImageError if it does not exist, or has more than 1 GB."""
        ref = self._find(item) if item.member else ImageRef(path=item.image_path, name=item.image_path)
        if ref is None:
            raise ImageError("vanished", "not in its archive")
        return read(ref, DecodeOptions())

    def find(self, archive: str, member: str) -> ImageRef | None:
        """Return a member of an archive, or row of a table; None if it does not exist, or `archive` is "".

        Raises InputError if the archive cannot be opened.
        """
        if self._path != archive:
            self._path, self._archive = archive, None
            self._archive = self._open(archive) if archive else None
        return self._archive.find(member) if self._archive else None

    def _find(self, item: Item) -> ImageRef | None:
        try:
            return self.find(item.archive, item.member)
        except InputError:
            return None

    def _open(self, path: str) -> _Tar | _Table:
        open_remote = functools.partial(open_url, path) if urls.scheme(path) else None
        if path.lower().endswith(".parquet"):
            return _Table(ParquetTable(path, self.image_column, open_remote))
        return _Tar(TarArchive(path, IMAGE_SUFFIXES, MAX_BYTES, open_remote))


def suffix_of(name: str, image: bytes) -> str:
    """Return what a name lacks to be that of an image: nothing, or for the row of a table the suffix of its format.

    Raises ImageError for bytes that are no image.
    """
    if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
        return ""
    from blip2cap.decode.image import read_format  # late: numpy

    name = read_format(image, DecodeOptions())
    return _SUFFIXES.get(name, f".{name.lower()}")


class _Table:
    """The rows of a table, by their numbers."""

    def __init__(self, table: ParquetTable) -> None:
        self._table, self._rows = table, TableRows(table)

    def find(self, member: str) -> ImageRef | None:
        """Return a row; None if there is none."""
        if not re.fullmatch("[0-9]{1,18}", member) or int(member) >= self._table.num_rows:
            return None
        load = functools.partial(self._rows.load, int(member))
        return ImageRef(path=self._table.path, name=f"{self._table.path}#{member}", load=load)


class _Tar:
    """The members of an archive, by their names; of members with one name, the first.

    An archive that is compressed or remote is read forwards: for a member before the last one it begins again.
    """

    def __init__(self, archive: TarArchive) -> None:
        self._archive = archive
        self._passed: dict[str, tuple[int, ImageRef | None]] = {}
        """Name -> number of the member, and the member where it can be read later."""
        self._is_known = False
        """True when all members have been passed once."""
        self._begin()

    def _begin(self) -> None:
        self._members = enumerate(self._archive.refs(Counter(), []))
        self._last: tuple[int, ImageRef | None] = (-1, None)

    def find(self, member: str) -> ImageRef | None:
        """Return a member; None if there is none."""
        name = f"{self._archive.path}#{member}"
        number, ref = self._passed.get(name, (None, None))
        if ref is not None:
            return ref
        if number == self._last[0]:
            return self._last[1]
        if number is None and self._is_known:
            return None
        if number is not None and number < self._last[0]:
            self._begin()
        for number, ref in self._members:
            self._last = number, ref
            self._passed.setdefault(ref.name, (number, None if self._archive.streamed else ref))
            if ref.name == name:
                return ref
        self._is_known = True
        return None
