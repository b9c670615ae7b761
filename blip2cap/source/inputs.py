"""Folders, files and lists of paths -> ImageRef, streamed in one stable order.

Covered: folders of any size (`walk`), path lists by newline or NUL, patterns, inputs that overlap.
Not covered: archives, Parquet, remote storage.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from blip2cap.errors import InputError
from blip2cap.keys import Keys
from blip2cap.options import SourceOptions
from blip2cap.records import ImageRef
from blip2cap.source.lists import split
from blip2cap.source.patterns import Patterns
from blip2cap.source.walk import Walk


class Source:
    """The images of one run; iterating walks as it goes, and may be done again if `repeatable`.

    Raises InputError at once for an input that does not exist, UsageError for a pattern that is none.
    """

    def __init__(self, options: SourceOptions, stdin: BinaryIO | None = None) -> None:
        self.options = options
        self.stdin = stdin
        self.skipped: Counter[str] = Counter()
        """How many entries the walk passed over, by reason; of a folder that is listed, all at once."""
        self.patterns = Patterns(options)
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
        return self._limited(in_order=True)

    def unordered(self) -> Iterator[ImageRef]:
        """Yield the same images in any order, without memory for the names of a folder: to count, or to find any.

        With a limit the order says which they are, and is kept.
        """
        return self._limited(in_order=self.options.limit is not None)

    def _limited(self, *, in_order: bool) -> Iterator[ImageRef]:
        self.skipped.clear()
        refs = self._walk(self.options.inputs[0], "", in_order) if self._one_folder else self._unique(in_order)
        return islice(refs, self.options.limit)

    def _unique(self, in_order: bool) -> Iterator[ImageRef]:
        """Yield everything that was named, once: two inputs may overlap."""
        seen = Keys()
        for ref in self._named(in_order):
            if seen.add(ref.name):
                yield ref
            else:
                self.skipped["duplicate"] += 1

    def _named(self, in_order: bool) -> Iterator[ImageRef]:
        for given in self.options.inputs:
            if given == "-":
                yield from self._listed(self.stdin or sys.stdin.buffer)
            elif os.path.isdir(given):
                yield from self._walk(given, f"{given.rstrip('/')}/", in_order)
            else:
                yield from self._given(given)
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
                yield from self._given(os.fsdecode(raw))

    def _given(self, path: str) -> Iterator[ImageRef]:
        """Yield one path that was named, unless the patterns are against it."""
        if why := self.patterns.reason_against(path):
            self.skipped[why] += 1
        else:
            yield ImageRef(path=path, name=path)

    def _walk(self, folder: str, prefix: str, in_order: bool) -> Iterator[ImageRef]:
        walk = Walk(folder, prefix, self.skipped, self.patterns)
        return walk.in_order() if in_order else walk.as_listed()
