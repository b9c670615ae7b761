"""A folder -> ImageRef, streamed: of each folder on the way its names are kept, as bytes, and nothing of other files.

Covered: any depth, links and loops of links, folders of a million files, names that are not UTF-8. What is no regular
file (a FIFO, a device) but is named like an image is yielded, never opened: reading it makes its failed row.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from blip2cap.records import ImageRef
from blip2cap.source.patterns import Patterns

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".avif", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""What a walk takes for an image; the content decides later. A file that is named itself is always tried."""
_NAME = re.compile(rb"[^\0]+")
_SUFFIXES = frozenset(map(os.fsencode, IMAGE_SUFFIXES))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folder:
    """A folder on the way."""

    path: str
    """Where it is, with `/` at the end."""
    below: str
    """The same, relative to the folder that is walked; "" for that one."""
    identity: tuple[int, int]
    """Device and inode: a folder that lies in itself is a loop of links."""
    parent: _Folder | None


class Walk:
    """The images below one folder; what is passed over is counted in `skipped`, by reason."""

    def __init__(self, folder: str, prefix: str, skipped: Counter[str], patterns: Patterns) -> None:
        self.folder = f"{folder.rstrip('/')}/"
        self.prefix = prefix
        """What the names begin with."""
        self.skipped = skipped
        self.patterns = patterns if patterns.any else None

    def in_order(self) -> Iterator[ImageRef]:
        """Yield them sorted by the bytes of their names, files and folders of one level together."""
        levels = []
        if (root := self._open(self.folder, "", None)) is not None and (names := self._sorted(root)) is not None:
            levels = [(root, *names)]
        while levels:
            folder, names_left, folders = levels[-1]
            for name in names_left:
                if name not in folders:
                    yield self._ref(folder, name)
                elif (below := self._enter(folder, name)) is not None and (names := self._sorted(below)) is not None:
                    levels.append((below, *names))
                    break
            else:
                levels.pop()

    def as_listed(self) -> Iterator[ImageRef]:
        """Yield them as the file system lists them, which needs no memory for names: to count them."""
        root = self._open(self.folder, "", None)
        folders = [] if root is None else [root]
        while folders:
            folder = folders.pop()
            try:
                for name, is_folder in self._entries(folder):
                    if not is_folder:
                        yield self._ref(folder, name)
                    elif (below := self._enter(folder, name)) is not None:
                        folders.append(below)
            except OSError:
                self.skipped["unreadable_folder"] += 1

    def _ref(self, folder: _Folder, name: bytes) -> ImageRef:
        decoded = os.fsdecode(name)
        return ImageRef(path=f"{folder.path}{decoded}", name=f"{self.prefix}{folder.below}{decoded}")

    def _enter(self, folder: _Folder, name: bytes) -> _Folder | None:
        decoded = os.fsdecode(name)
        return self._open(f"{folder.path}{decoded}/", f"{folder.below}{decoded}/", folder)

    def _open(self, path: str, below: str, parent: _Folder | None) -> _Folder | None:
        """Look at a folder; None, and counted, if it cannot be looked at or holds itself."""
        try:
            status = os.stat(path)
        except OSError:
            self.skipped["unreadable_folder"] += 1
            return None
        identity = status.st_dev, status.st_ino
        above = parent
        while above is not None:
            if above.identity == identity:
                self.skipped["link_loop"] += 1
                return None
            above = above.parent
        return _Folder(path=path, below=below, identity=identity, parent=parent)

    def _sorted(self, folder: _Folder) -> tuple[Iterator[bytes], set[bytes]] | None:
        """List what is to be done in a folder, and which of it are folders; None, and counted, if it cannot be read."""
        names: list[bytes] = []
        folders: set[bytes] = set()
        try:
            for name, is_folder in self._entries(folder):
                names.append(name)
                if is_folder:
                    folders.add(name)
        except OSError:
            self.skipped["unreadable_folder"] += 1
            return None
        names.sort(reverse=True)
        packed = bytearray()  # a third of the memory, for as long as the folder is worked through
        while names:
            packed += names.pop() + b"\0"
        return (match[0] for match in _NAME.finditer(packed)), folders

    def _entries(self, folder: _Folder) -> Iterator[tuple[bytes, bool]]:
        """Yield names with whether they are folders, without those that are passed over. Raises OSError."""
        with os.scandir(os.fsencode(folder.path)) as listing:
            for entry in listing:
                name = entry.name
                if name.startswith(b"."):
                    self.skipped["hidden"] += 1
                elif is_folder := _is_folder(entry):
                    if self.patterns and self.patterns.excludes(f"{folder.below}{os.fsdecode(name)}/"):
                        self.skipped["excluded"] += 1
                    else:
                        yield name, is_folder
                elif name[name.rfind(b".") :].lower() not in _SUFFIXES:
                    self.skipped["other_suffix"] += 1
                elif self.patterns and (why := self.patterns.reason_against(f"{folder.below}{os.fsdecode(name)}")):
                    self.skipped[why] += 1
                else:
                    yield name, is_folder


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    """Ask what the listing has said; only of a link, the file system."""
    try:
        return entry.is_dir()
    except OSError:
        return False
