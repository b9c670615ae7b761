"""Folders, files, archives, tables, URLs and lists of paths -> ImageRef, streamed in one stable order.

Covered: folders of any size (`walk`), path lists by newline or NUL, patterns, overlapping inputs; other kinds of inputs
in `tar`, `parquet` and `buckets`.
Not covered: archives and tables that a list names or a folder holds; give them as INPUT.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO

from blip2cap import urls
from blip2cap.errors import InputError, OutputRefusedError
from blip2cap.key_set import KeySet
from blip2cap.options import SourceOptions
from blip2cap.records import ImageRef
from blip2cap.source.braces import expand
from blip2cap.source.buckets import look_up, open_url, walk
from blip2cap.source.lists import paths_in
from blip2cap.source.parquet import ParquetTable
from blip2cap.source.patterns import Patterns
from blip2cap.source.tar import TarArchive
from blip2cap.source.walk import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES, Walk


class Source:
    """The inputs of one run, checked and opened once; `stream()` yields their images.

    Raises InputError for an input that does not exist or is not of the kind that its name says, and UsageError for an
    invalid pattern.
    """

    def __init__(self, options: SourceOptions, stdin: BinaryIO | None = None) -> None:
        self.options = options
        self.stdin = stdin
        self.patterns = Patterns(options)
        self.inputs = tuple(name for given in options.inputs for name in _expanded(given))
        for given in (*self.inputs, *options.files_from):
            if given == "-" and stdin is None and sys.stdin is None:
                raise InputError("-: standard input is closed. Expected paths on it; give a folder or image files.")
            if given != "-" and not urls.scheme(given) and not os.path.exists(given):
                raise InputError(f"{given}: no such file or folder. Paths are relative to {os.getcwd()}.")
        for given in options.files_from:
            if os.path.isdir(given):
                raise InputError(f"--files-from {given}: a folder. Expected a file of paths; give folders as INPUT.")
        remote = [given for given in self.inputs if urls.scheme(given)]
        self.remote = look_up(remote) if remote else {}
        """URL -> file or directory."""
        self.folders = frozenset(filter(self._is_folder, self.inputs))
        self.archives: dict[str, TarArchive | ParquetTable] = {}
        for given in self.inputs:
            self._open_archive(given)
        if options.image_column is not None and not any(map(_is_parquet, self.inputs)):
            raise InputError(f"--image-column {options.image_column}: no .parquet file is among the inputs.")
        self._root_of_rows: str | None = None
        """Root of existing rows that absolute paths are added to, "" if all of them are absolute."""
        self._rows_are_absolute = False
        """True if the first of these rows has an absolute name."""

    def _is_folder(self, given: str) -> bool:
        if given in self.remote:
            return self.remote[given] == "directory"
        return given != "-" and os.path.isdir(given)

    def _open_archive(self, given: str) -> None:
        """Open a tar or Parquet file among the inputs, and check its header."""
        if not given.lower().endswith(ARCHIVE_SUFFIXES) or given in self.folders:
            return
        if urls.is_http(given):
            raise InputError(f"{urls.shown(given)}: only images are read from web servers. Fetch this file first.")
        open_remote = functools.partial(open_url, given) if given in self.remote else None
        if _is_parquet(given):
            self.archives[given] = ParquetTable(given, self.options.image_column, open_remote)
        else:
            self.archives[given] = TarArchive(given, IMAGE_SUFFIXES, self.options.max_bytes, open_remote)

    @property
    def repeatable(self) -> bool:
        """True if the images can be streamed more than once at little cost; false for pipes and remote inputs."""
        streamed = any(isinstance(archive, TarArchive) and archive.streamed for archive in self.archives.values())
        return not (self.from_pipe or self.remote or streamed)

    @property
    def from_pipe(self) -> bool:
        """True if paths come from a pipe, which can be read only once."""
        lists = self.options.files_from
        return "-" in (*self.inputs, *lists) or not all(os.path.isfile(given) for given in lists)

    @property
    def root(self) -> str:
        """Folder that the names are relative to, absolute or a URL; "" if all of them are absolute.

        It is the only input, else the current folder. Lists of paths may hold both kinds.
        """
        if self.one_folder:
            return self.inputs[0].rstrip("/") if self.inputs[0] in self.remote else os.path.realpath(self.inputs[0])
        if self._root_of_rows is not None:
            return self._root_of_rows
        if not self.options.files_from and all(map(_is_absolute, self.inputs)):
            return ""
        return os.path.realpath(os.getcwd())

    def continue_from_elsewhere(self, root: str, first_name: str) -> None:
        """Add absolute paths to rows whose names are relative to another root, or absolute.

        `first_name` is that of the first row. Does nothing where that could give an image a second row: there the roots
        differ. From here on, lists hold only absolute paths, none of which may be a row by its relative name.
        """
        has_lists = bool(self.options.files_from) or "-" in self.inputs
        only_absolute = all(given == "-" or _is_absolute(given) for given in self.inputs)
        self._rows_are_absolute = _is_absolute(first_name)
        if not self.one_folder and only_absolute and (has_lists or self._rows_are_absolute):
            self._root_of_rows = root

    def check_listed(self, path: str) -> None:
        """Raise OutputRefusedError for a path in a list that could be another name of an image with a row."""
        root = self._root_of_rows
        if root is None:
            return
        if not _is_absolute(path):
            names = f"relative to {root}. Run the command there" if root else "absolute. Use another --out"
            raise OutputRefusedError(
                f"{path}: in a list of paths, and relative to {os.getcwd()}; the names of existing rows are {names}, "
                "or list absolute paths."
            )
        if root and not self._rows_are_absolute and os.path.realpath(path).startswith(root.rstrip("/") + "/"):
            raise OutputRefusedError(
                f"{path}: in a list of paths; names of existing rows are relative to {root}, so it may have a row by "
                "another name. Use another --out."
            )

    @property
    def one_folder(self) -> bool:
        """True if the only input is a folder: names are relative to it."""
        return len(self.inputs) == 1 and not self.options.files_from and self.inputs[0] in self.folders

    def stream(self, *, ordered: bool = True) -> ImageStream:
        """Begin to walk the inputs; streams of a `repeatable` source are independent, also in different threads.

        With `ordered=False` images come in any order, and the names of a folder take no memory: for counting. A limit
        keeps the order, which decides which images are within it.
        """
        return ImageStream(self, ordered=ordered or self.options.limit is not None)

    def __iter__(self) -> ImageStream:
        return self.stream()


class ImageStream(Iterator[ImageRef]):
    """One walk through the inputs of a source, and what it skipped so far."""

    def __init__(self, source: Source, *, ordered: bool) -> None:
        self.source, self.ordered = source, ordered
        self.skipped: Counter[str] = Counter()
        """Number of skipped entries by reason; those of one folder are added when it is listed."""
        self.damaged: list[str] = []
        """A message for each archive that could not be read to its end."""
        self._refs = islice(self._all(), source.options.limit)

    def __next__(self) -> ImageRef:
        return next(self._refs)

    def __iter__(self) -> Iterator[ImageRef]:
        return self._refs  # a loop then calls no function of Python for each image

    def _all(self) -> Iterator[ImageRef]:
        """Yield every image once: inputs may overlap."""
        source = self.source
        if source.one_folder:
            yield from self._folder(source.inputs[0], "")
            return
        seen = KeySet()
        for ref in self._named():
            if seen.add(ref.name):
                yield ref
            else:
                self.skipped["duplicate"] += 1

    def _named(self) -> Iterator[ImageRef]:
        """Yield the images of all inputs, then those of the lists."""
        source = self.source
        for given in source.inputs:
            if given == "-":
                yield from self._listed(source.stdin or sys.stdin.buffer, "standard input")
            elif given in source.folders:
                yield from self._folder(given, f"{given.rstrip('/')}/")
            elif (archive := source.archives.get(given)) is not None:
                yield from self._wanted(archive.refs(self.skipped, self.damaged), f"{urls.without_password(given)}#")
            else:
                yield from self._wanted([_path_ref(given)])
        for given in source.options.files_from:
            if given == "-":
                yield from self._listed(source.stdin or sys.stdin.buffer, "standard input")
            else:
                try:
                    lines = open(given, "rb")  # noqa: SIM115  only its own errors are caught, not those of our caller
                except OSError as error:
                    raise InputError(f"--files-from {given}: cannot be read: {error.strerror}.") from error
                with lines:
                    yield from self._listed(lines, given)

    def _listed(self, stream: BinaryIO, name: str) -> Iterator[ImageRef]:
        for path in paths_in(stream, name, null_separated=self.source.options.null_separated):
            self.source.check_listed(path)
            yield from self._wanted([_path_ref(path)])

    def _folder(self, given: str, prefix: str) -> Iterator[ImageRef]:
        if given in self.source.remote:
            return self._wanted(walk(given, prefix, IMAGE_SUFFIXES, self.skipped), prefix)
        folder = Walk(given, prefix, self.skipped, self.source.patterns)
        return folder.in_order() if self.ordered else folder.as_listed()

    def _wanted(self, refs: Iterable[ImageRef], prefix: str = "") -> Iterator[ImageRef]:
        """Yield the images that the patterns accept; patterns are matched against names without `prefix`."""
        for ref in refs:
            if why := self.source.patterns.reason_against(ref.name.removeprefix(prefix), folders_too=True):
                self.skipped[why] += 1
            else:
                yield ref


def _expanded(given: str) -> list[str]:
    """Return the names that an input with braces stands for; an existing file with braces in its name is that file."""
    return [given] if os.path.exists(given) else expand(given)


def _is_absolute(given: str) -> bool:
    return os.path.isabs(given) or bool(urls.scheme(given))


def _path_ref(path: str) -> ImageRef:
    return ImageRef(path=path, name=urls.without_password(path))


def _is_parquet(given: str) -> bool:
    return given.lower().endswith(".parquet")
