"""Names of images in annotations -> paths of files."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence

from blip2cap.source.walk import IMAGE_SUFFIXES

_COCO_NAMES = ("COCO_{split}_{number:012d}.jpg", "{number:012d}.jpg", "{split}/{number:012d}.jpg")
"""Names of COCO's images by their numbers: until 2014, from 2017 on, and both splits in one folder."""


class ImageFiles:
    """Finds files in a number of folders; the first that has a file counts."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders = tuple(folders)

    def path(self, name: str) -> str:
        """Return the path of an image; that of a file that does not exist, if no folder has it.

        A name without a suffix, as kohya's are, is that of the image with any suffix.
        """
        if "://" in name or os.path.isabs(name):
            return name
        if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
            for folder in self.folders:
                parent, stem = os.path.split(os.path.join(folder, name))
                if found := _images_by_stem(parent).get(stem):
                    return os.path.join(parent, found)
        paths = [os.path.join(folder, name) for folder in self.folders]
        return next((path for path in paths if os.path.exists(path)), paths[0]) if len(paths) > 1 else paths[0]

    def coco_pattern(self, numbers: Sequence[int], split: str) -> str:
        """Return how images with these numbers are named: the first pattern of which a folder has an image."""
        for pattern in _COCO_NAMES:
            for number in numbers[:20]:
                if os.path.exists(self.path(pattern.format(split=split, number=number))):
                    return pattern
        return _COCO_NAMES[0] if split else _COCO_NAMES[1]


@functools.lru_cache(maxsize=256)
def _images_by_stem(folder: str) -> Mapping[str, str]:
    """Return the images in a folder by their names without suffixes; the first of several in the order of names."""
    try:
        names = sorted(os.listdir(folder), reverse=True)
    except OSError:
        return {}
    split = ((os.path.splitext(name), name) for name in names)
    return {stem: name for (stem, suffix), name in split if suffix.lower() in IMAGE_SUFFIXES}
