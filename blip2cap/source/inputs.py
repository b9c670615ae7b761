"""Folders, files, archives, tables, URLs and lists of paths -> ImageRef, streamed in one stable order.

Covered: folders of any size (`walk`), path lists by newline or NUL, patterns, inputs that overlap; what is no plain
file in `tar`, `parquet` and `remote`.
Not covered: archives and tables that a list names or a folder holds; give them as INPUT.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import BinaryIO

from blip2cap import urls
from blip2cap.errors import InputError
from blip2cap.key_set import KeySet
from blip2cap.options import SourceOptions
from blip2cap.records import ImageRef
from blip2cap.source import parquet, tar
from blip2cap.source.braces import expand
from blip2cap.source.buckets import look_up, open_url, walk
from blip2cap.source.lists import split
from blip2cap.source.patterns import Patterns
from blip2cap.source.walk import IMAGE_SUFFIXES, Walk


class Source:
    """The images of one run; iterating walks as it goes, and may be done again if `repeatable`.

    Raises InputError at once for an input that does not exist, or is not what its name says, UsageError for a pattern
    that is none.
    """

    def __init__(self, options: SourceOptions, stdin: BinaryIO | None = None) -> None:
        self.options = options
        self.stdin = stdin
        self.skipped: Counter[str] = Counter()
        """How many entries were passed over, by reason; of a folder that is listed, all at once."""
        self.patterns = Patterns(options)
        self.damaged: list[str] = []
        """What to tell about archives that could not be read to their end."""
        self.inputs = tuple(name for given in options.inputs for name in _names(given))
        for given in (*self.inputs, *options.files_from):
            if given != "-" and not urls.scheme(given) and not os.path.exists(given):
                raise InputError(f"{given}: no such file or folder. Paths are relative to {os.getcwd()}.")
        for given in options.files_from:
            if os.path.isdir(given):
                raise InputError(f"--files-from {given}: a folder. Expected a file of paths; give folders as INPUT.")
        self._remote = look_up([given for given in self.inputs if urls.scheme(given)])
        """URL -> file or directory."""
        self._archives: dict[str, Callable[[], Iterator[ImageRef]]] = {}
        self._streamed = bool(self._remote)
        for given in self.inputs:
            self._open_archive(given)
        if options.image_column is not None and not any(map(_is_parquet, self.inputs)):
            raise InputError(f"--image-column {options.image_column}: no .parquet file is among the inputs.")

    def _open_archive(self, given: str) -> None:
        """Look into a tar or Parquet file that was named; remember how to go through it."""
        lower = given.lower()
        if not lower.endswith((*tar.SUFFIXES, ".parquet")) or self._is_folder(given):
            return
        if urls.is_http(given):
            raise InputError(f"{urls.shown(given)}: only images are read from web servers. Fetch this file first.")
        open_remote = functools.partial(open_url, given) if given in self._remote else None
        if _is_parquet(given):
            self._archives[given] = parquet.ParquetTable(given, self.options.image_column, open_remote).refs
        else:
            archive = tar.TarArchive(given, IMAGE_SUFFIXES, self.options.max_bytes, open_remote)
            self._archives[given] = functools.partial(archive.refs, self.skipped, self.damaged)
            self._streamed |= archive.streamed

    def _is_folder(self, given: str) -> bool:
        return self._remote[given] == "directory" if given in self._remote else os.path.isdir(given)

    @property
    def repeatable(self) -> bool:
        """Whether the source can be iterated more than once, at little cost; pipes and streams cannot."""
        return not self.from_pipe and not self._streamed

    @property
    def from_pipe(self) -> bool:
        """Whether paths come from a pipe, which can be read only once."""
        lists = self.options.files_from
        return "-" in (*self.inputs, *lists) or not all(os.path.isfile(given) for given in lists)

    @property
    def root(self) -> str:
        """What the names are relative to: the one input folder, as an absolute path or a URL, else the current one."""
        if self._one_folder and self.inputs[0] in self._remote:
            return self.inputs[0].rstrip("/")
        return os.path.realpath(self.inputs[0] if self._one_folder else os.getcwd())

    @property
    def _one_folder(self) -> bool:
        return len(self.inputs) == 1 and not self.options.files_from and self._is_folder(self.inputs[0])

    def __iter__(self) -> Iterator[ImageRef]:
        return self._limited(in_order=True)

    def unordered(self) -> Iterator[ImageRef]:
        """Yield the same images in any order, without memory for the names of a folder: to count, or to find any.

        With a limit the order says which they are, and is kept.
        """
        return self._limited(in_order=self.options.limit is not None)

    def _limited(self, *, in_order: bool) -> Iterator[ImageRef]:
        self.skipped.clear()
        self.damaged.clear()
        refs = self._folder(self.inputs[0], "", in_order) if self._one_folder else self._unique(in_order)
        return islice(refs, self.options.limit)

    def _unique(self, in_order: bool) -> Iterator[ImageRef]:
        """Yield everything that was named, once: two inputs may overlap."""
        seen = KeySet()
        for ref in self._named(in_order):
            if seen.add(ref.name):
                yield ref
            else:
                self.skipped["duplicate"] += 1

    def _named(self, in_order: bool) -> Iterator[ImageRef]:
        for given in self.inputs:
            if given == "-":
                yield from self._listed(self.stdin or sys.stdin.buffer)
            elif self._is_folder(given):
                yield from self._folder(given, f"{given.rstrip('/')}/", in_order)
            elif given in self._archives:
                yield from self._wanted(self._archives[given](), f"{urls.without_password(given)}#")
            else:
                yield from self._wanted([_named(given)])
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
                yield from self._wanted([_named(os.fsdecode(raw))])

    def _folder(self, given: str, prefix: str, in_order: bool) -> Iterator[ImageRef]:
        if given in self._remote:
            return self._wanted(walk(given, prefix, IMAGE_SUFFIXES, self.skipped), prefix)
        found = Walk(given, prefix, self.skipped, self.patterns)
        return found.in_order() if in_order else found.as_listed()

    def _wanted(self, refs: Iterable[ImageRef], prefix: str = "") -> Iterator[ImageRef]:
        """Leave out what the patterns are against; they see names without `prefix`."""
        for ref in refs:
            if why := self.patterns.reason_against(ref.name.removeprefix(prefix), folders_too=True):
                self.skipped[why] += 1
            else:
                yield ref


def _names(given: str) -> list[str]:
    """Return what an input with braces stands for; a file whose name has some is that file."""
    return [given] if os.path.exists(given) else expand(given)


def _named(path: str) -> ImageRef:
    return ImageRef(path=path, name=urls.without_password(path))


def _is_parquet(given: str) -> bool:
    return given.lower().endswith(".parquet")
