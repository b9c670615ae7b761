"""A folder -> ImageRef, streamed: only the names of images and folders in the open folders are in memory, as bytes.

Covered: any depth, symbolic links and loops of them, folders of a million files, names that are not UTF-8. A special
file (a FIFO, a device) that is named like an image is yielded but not opened: it becomes a failed row when it is read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from blip2cap.records import ImageRef
from blip2cap.source.patterns import Patterns

UNREAD_PARTS = ("unreadable_folder", "unreadable_archive")
"""Reasons that count what was not read to its end: images that were not found may still exist."""
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".avif", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""Suffixes of images in a folder; the content decides later. A file given as INPUT is always tried."""
ARCHIVE_SUFFIXES = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
    ".parquet",
)
"""Ends of the names of archives and tables, which are read only if they are given by name."""
SYSTEM_FOLDERS = frozenset(
    {"@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "__MACOSX", "$RECYCLE.BIN", "lost+found"}
)
"""Folders that storage devices and systems create, with thumbnails and deleted files in them."""
_ARCHIVES = tuple(map(os.fsencode, ARCHIVE_SUFFIXES))
_SYSTEM_FOLDERS = frozenset(map(os.fsencode, SYSTEM_FOLDERS))
_NUM_PACKED = 1 << 8
"""Number of names that are packed into one bytes object, and decoded at once."""
_SUFFIXES = frozenset(map(os.fsencode, IMAGE_SUFFIXES))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folder:
    """A folder that is being walked."""

    path: str
    """Path with `/` at the end."""
    below: str
    """Path relative to the input folder, with `/` at the end; "" for the input folder itself."""
    identity: tuple[int, int]
    """Device and inode: a folder inside itself is a loop of links."""
    parent: _Folder | None


class Walk:
    """The images below one folder; skipped entries are counted in `skipped` by reason."""

    def __init__(self, folder: str, prefix: str, skipped: Counter[str], patterns: Patterns) -> None:
        self.folder = f"{folder.rstrip('/')}/"
        self.prefix = prefix
        """Prefix of all names."""
        self.skipped = skipped
        self.patterns = patterns if patterns.any else None

    def in_order(self) -> Iterator[ImageRef]:
        """Yield the images in byte order of the names, files and folders of one level together."""
        levels = []
        if (root := self._open(self.folder, "", None)) is not None and (names := self._sorted(root)) is not None:
            levels = [(root, *names)]
        while levels:
            folder, names_left, folders = levels[-1]
            below = f"{self.prefix}{folder.below}"
            for name in names_left:
                if name not in folders:
                    yield ImageRef(path=f"{folder.path}{name}", name=f"{below}{name}")
                elif (inner := self._enter(folder, name)) is not None and (names := self._sorted(inner)) is not None:
                    levels.append((inner, *names))
                    break
            else:
                levels.pop()

    def as_listed(self) -> Iterator[ImageRef]:
        """Yield the images in the order of the file system, which takes no memory for names."""
        root = self._open(self.folder, "", None)
        folders = [] if root is None else [root]
        while folders:
            folder = folders.pop()
            try:
                for raw, is_folder in self._entries(folder):
                    name = os.fsdecode(raw)
                    if not is_folder:
                        yield ImageRef(path=f"{folder.path}{name}", name=f"{self.prefix}{folder.below}{name}")
                    elif (inner := self._enter(folder, name)) is not None:
                        folders.append(inner)
            except OSError:
                self.skipped["unreadable_folder"] += 1

    def _enter(self, folder: _Folder, name: str) -> _Folder | None:
        return self._open(f"{folder.path}{name}/", f"{folder.below}{name}/", folder)

    def _open(self, path: str, below: str, parent: _Folder | None) -> _Folder | None:
        """Look up a folder; return None, and count it, if it is unreadable or a loop."""
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

    def _sorted(self, folder: _Folder) -> tuple[Iterator[str], set[str]] | None:
        """List the images and folders in a folder, and which are folders; return None, and count it, if unreadable."""
        names: list[bytes] = []
        folders: set[str] = set()
        try:
            for name, is_folder in self._entries(folder):
                names.append(name)
                if is_folder:
                    folders.add(os.fsdecode(name))
        except OSError:
            self.skipped["unreadable_folder"] += 1
            return None
        names.sort(reverse=True)
        packed = []  # a third of the memory, until the folder is finished
        while names:
            packed.append(b"\0".join(names[: -_NUM_PACKED - 1 : -1]))
            del names[-_NUM_PACKED:]
        return (name for block in packed for name in os.fsdecode(block).split("\0")), folders

    def _entries(self, folder: _Folder) -> Iterator[tuple[bytes, bool]]:
        """Yield the name of each entry that is not skipped, and whether it is a folder. Raises OSError."""
        with os.scandir(os.fsencode(folder.path)) as listing:
            for entry in listing:
                name = entry.name
                if name.startswith(b"."):
                    self.skipped["hidden"] += 1
                    continue
                try:
                    is_folder = entry.is_dir()  # only a link has to be looked up
                except OSError:
                    is_folder = False
                if is_folder:
                    if name in _SYSTEM_FOLDERS:
                        self.skipped["system_folder"] += 1
                    elif self.patterns and self.patterns.excludes(f"{folder.below}{os.fsdecode(name)}/"):
                        self.skipped["excluded"] += 1
                    else:
                        yield name, is_folder
                elif name[name.rfind(b".") :].lower() not in _SUFFIXES:
                    self.skipped["archive" if name.lower().endswith(_ARCHIVES) else "other_suffix"] += 1
                elif self.patterns and (why := self.patterns.reason_against(f"{folder.below}{os.fsdecode(name)}")):
                    self.skipped[why] += 1
                else:
                    yield name, is_folder
