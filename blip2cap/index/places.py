"""The images of hits: files, URLs, and members of archives, found by their names."""

from __future__ import annotations

import os
from dataclasses import replace

from blip2cap.errors import InputError
from blip2cap.index.hits import Hit
from blip2cap.outputs.export.images import Images
from blip2cap.records import ImageRef
from blip2cap.source.walk import ARCHIVE_SUFFIXES


class Places:
    """Finds the images of hits. An archive is opened once while its members follow each other."""

    def __init__(self, image_column: str | None = None) -> None:
        self._images = Images(image_column)

    def ref(self, hit: Hit) -> ImageRef:
        """Return the image of a hit; one that is not in its archive any more has the error `vanished`."""
        archive, member = member_of(hit)
        if not member:
            return ImageRef(path=hit.path, name=hit.file_name)
        try:
            found = self._images.find(archive, member)
        except InputError as error:
            return ImageRef(path=hit.path, name=hit.file_name, error="vanished", detail=error.message)
        if found is None:
            detail = "not in its archive any more"
            return ImageRef(path=hit.path, name=hit.file_name, error="vanished", detail=detail)
        return replace(found, name=hit.file_name)


def member_of(hit: Hit) -> tuple[str, str]:
    """Return the archive of a hit and the name of the image in it, or the file and "".

    Its path is that of the archive, its name ARCHIVE#MEMBER, with the archive as it was given.
    """
    if hit.path.lower().endswith(ARCHIVE_SUFFIXES):
        _, found, member = hit.file_name.partition(f"{os.path.basename(hit.path)}#")
        if found:
            return hit.path, member
    return hit.path, ""
