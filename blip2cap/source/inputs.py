"""Folders, files and lists of paths -> ImageRef, streamed in one stable order.

Covered: nested folders, links and loops of links, path lists by newline or NUL, names that are not UTF-8.
Not covered: archives, Parquet, remote storage.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from blip2cap.errors import InputError
from blip2cap.options import SourceOptions
from blip2cap.records import ImageRef
from blip2cap.source.lists import split

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".avif", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""What a walk takes for an image; the content decides later. A file that is named itself is always tried."""


class Source:
    """The images of one run; iterating walks as it goes, and may be done again if `repeatable`.

    Raises InputError at once for an input that does not exist.
    """

    def __init__(self, options: SourceOptions, stdin: BinaryIO | None = None) -> None:
        self.options = options
        self.stdin = stdin
        self.skipped: Counter[str] = Counter()
        """How many entries the walk passed over, by reason."""
        for given in (*options.inputs, *options.files_from):
            if given != "-" and not os.path.exists(given):
                raise InputError(f"{given}: no such file or folder. Paths are relative to {os.getcwd()}.")
        for given in options.files_from:
            if os.path.isdir(given):
                raise InputError(f"--files-from {given}: a folder. Expected a file of paths; give folders as INPUT.")

    @property
    def repeatable(self) -> bool:
        """Whether the source can be iterated more than once; pipes cannot."""
        lists = self.options.files_from
        return "-" not in (*self.options.inputs, *lists) and all(os.path.isfile(given) for given in lists)

    @property
    def root(self) -> str:
        """What the names are relative to, as an absolute path: the one input folder, else the current folder."""
        return os.path.realpath(self.options.inputs[0] if self._one_folder else os.getcwd())

    @property
    def _one_folder(self) -> bool:
        inputs = self.options.inputs
        return len(inputs) == 1 and not self.options.files_from and os.path.isdir(inputs[0])

    def __iter__(self) -> Iterator[ImageRef]:
        self.skipped.clear()
        refs = self._walk(Path(self.options.inputs[0]), "") if self._one_folder else self._unique()
        for count, ref in enumerate(refs, start=1):
            yield ref
            if count == self.options.limit:
                return

    def _unique(self) -> Iterator[ImageRef]:
        """Yield everything that was named, once: two inputs may overlap."""
        seen: set[str] = set()
        for ref in self._named():
            if ref.name in seen:
                self.skipped["duplicate"] += 1
            else:
                seen.add(ref.name)
                yield ref

    def _named(self) -> Iterator[ImageRef]:
        for given in self.options.inputs:
            if given == "-":
                yield from self._listed(self.stdin or sys.stdin.buffer)
            elif os.path.isdir(given):
                yield from self._walk(Path(given), f"{given.rstrip('/')}/" if given != "/" else "/")
            else:
                yield ImageRef(path=given, name=given)
        for given in self.options.files_from:
            if given == "-":
                yield from self._listed(self.stdin or sys.stdin.buffer)
            else:
                try:
                    lines = open(given, "rb")  # noqa: SIM115  errors of those who read what we yield are not ours
                except OSError as error:
                    raise InputError(f"--files-from {given}: cannot be read: {error.strerror}.") from error
                with lines:
                    yield from self._listed(lines)

    def _listed(self, stream: BinaryIO) -> Iterator[ImageRef]:
        for raw in split(stream, b"\0" if self.options.null_separated else b"\n"):
            if not self.options.null_separated:
                raw = raw.removesuffix(b"\r")
            if raw:
                path = os.fsdecode(raw)
                yield ImageRef(path=path, name=path)

    def _walk(self, folder: Path, prefix: str, parents: tuple[tuple[int, int], ...] = ()) -> Iterator[ImageRef]:
        """Yield the images under `folder`: files and folders of one level in the order of their names' bytes."""
        try:
            status = os.stat(folder)
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError:
            self.skipped["unreadable_folder"] += 1
            return
        here = (status.st_dev, status.st_ino)
        if here in parents:
            self.skipped["link_loop"] += 1
            return
        for entry in entries:
            if entry.name.startswith("."):
                self.skipped["hidden"] += 1
            elif _is_dir(entry):
                yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/", (*parents, here))
            elif os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
                self.skipped["other_suffix"] += 1
            else:
                yield ImageRef(path=entry.path, name=f"{prefix}{entry.name}")


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
