"""The images of entries, found by their names: files, members of archives, rows of tables."""

from __future__ import annotations

import os

from blip2cap import urls
from blip2cap.index.hits import Hit
from blip2cap.index.places import Places
from blip2cap.records import ImageRef
from blip2cap.source.walk import ARCHIVE_SUFFIXES


class Pictures:
    """Finds images by the names that rows and references have. Names are relative to `root`, "" for this folder."""

    def __init__(self, root: str, image_column: str | None = None) -> None:
        self.root = root
        self._places = Places(image_column)

    def ref(self, name: str) -> ImageRef:
        """Return the image of a name; reading it tells if there is none."""
        archive = next(
            (name[: at + len(suffix)] for suffix in ARCHIVE_SUFFIXES if (at := name.find(f"{suffix}#")) > 0), ""
        )
        path = self._path(name)
        if archive and not os.path.isfile(path):
            path = self._path(archive)
        return self._places.ref(Hit(file_name=name, path=path, score=0.0))

    def _path(self, name: str) -> str:
        return name if urls.scheme(name) else os.path.join(self.root, name)
