"""The interface of every format: one `Writer`, and what formats of one file share."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from blip2cap.errors import OutputError, UsageError
from blip2cap.outputs.export.images import Images, suffix_of
from blip2cap.outputs.export.item import Item
from blip2cap.outputs.export.options import STREAMED, ExportOptions
from blip2cap.outputs.files import OS_FILES, Files, replaceable, replacing_stream, write_whole
from blip2cap.outputs.manifest import Manifest


class Writer:
    """One format. Within `writing`, an export calls `write` for every item that has no `skip_reason`.

    `writing` and `write` raise OSError if something cannot be written; `write` raises ImageError if it needs the image,
    and cannot read it.
    """

    keeps_rows = False
    """Rows are written as they are, with all columns; False: texts of them are, those of one image together."""
    one_text = True
    """The format holds one text for an image: answers to several questions do not fit."""
    unique_names = True
    """No two items may have the same `output_name`."""
    needs_root = True
    """The folder of the images has to be known."""
    default_out: str | None = None
    """Default of --out; None: it has to be given, unless `output_path` is overridden."""
    needs_count = False
    """`num_items` has to be known before `writing`."""
    num_items = 0
    """Number of rows that are ok and wanted."""
    extension = ""
    """Extension of sidecars, in formats that have them."""
    writes_entries = False
    """`write` makes files of one item each, so an error about a name costs that item only."""
    num_extracted = 0
    """Number of images that were copied out of archives and tables."""

    def __init__(
        self, options: ExportOptions, root: str, manifest: Manifest | None = None, files: Files = OS_FILES
    ) -> None:
        self.options, self.root, self.manifest, self.files = options, root, manifest, files
        self.out = self.output_path()
        self.images = Images(manifest.settings.get("image_column") if manifest else None)
        self._last_folder: tuple[str, bool] = ("", False)

    @cached_property
    def folder(self) -> str:
        """Real path of the folder that is written to; the images of archives go there."""
        return os.path.realpath(self.out)

    def output_path(self) -> str:
        """Return the file or folder to write."""
        if self.options.out is None and self.default_out is None:
            raise UsageError(f"--to {self.options.to}: nothing says where to write. Give --out PATH.")
        return self.options.out or self.default_out or ""

    def check(self) -> None:
        """Raise UsageError, before anything is written, if the output must not be written there."""

    def output_name(self, item: Item) -> str:
        """Return the name of an item in the output, which no other item and no image may have; "" if it has none."""
        return ""

    def skip_reason(self, item: Item) -> str:
        """Return the reason to leave out an item, "" if it is to be written."""
        return ""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open the output for the block, and finish it after the block; an exception removes what is not finished."""
        yield

    def write(self, item: Item) -> str:
        """Write one item; return the reason if that was not possible, else ""."""
        raise NotImplementedError

    def is_below(self, path: str) -> bool:
        """Return whether no link leads a path out of `folder`; items of one folder usually follow each other."""
        folder = path if os.path.islink(path) else os.path.dirname(path)
        if self._last_folder[0] != folder:
            self._last_folder = folder, os.path.commonpath((self.folder, os.path.realpath(folder))) == self.folder
        return self._last_folder[1]

    def extract(self, item: Item) -> str:
        """Copy the image of an item from its archive to its `path_in_out`; return its path in `folder`.

        Existing files stay: return "" if the image is not equal to the file that has its name. Raises ImageError, and
        OSError if the file cannot be written.
        """
        image = self.images.read(item)
        name = item.path_in_out + suffix_of(item.path_in_out, image)
        path = Path(self.folder, name)
        if os.path.lexists(path):
            same = path.is_file() and path.stat().st_size == len(image) and path.read_bytes() == image
            return name if same else ""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.files, path, image, unique=True, sync_name=False)
        self.num_extracted += 1
        return name


class FileWriter(Writer):
    """A format that is one file, which appears when it is complete."""

    one_text = unique_names = needs_root = False
    file: BinaryIO | io.BufferedWriter

    def check(self) -> None:
        """Refuse to replace a file without --existing overwrite, and what is no regular file."""
        if self.options.out == "-":
            return
        if os.path.isdir(self.out):
            raise UsageError(f"--out {self.out}: a folder. Expected the name of a file.")
        try:
            exists = replaceable(self.files, Path(self.out)) is not None
        except OSError as error:
            other = "--out - for standard output" if self.options.to in STREAMED else "another --out"
            raise OutputError(f"{self.out} cannot be written: {error.strerror}. Use {other}.") from error
        if exists and self.options.existing != "overwrite":
            raise UsageError(f"{self.out} exists. Use another --out, or --existing overwrite.")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open `file` under a temporary name, or take standard output."""
        if self.options.out == "-":
            if sys.stdout is None:
                raise OutputError("--out -: standard output is closed.")
            stdout: Any = sys.stdout.buffer
            # With PYTHONUNBUFFERED it is raw: a write may take a part, and report the full disk next time.
            self.file = io.BufferedWriter(stdout) if isinstance(stdout, io.RawIOBase) else stdout
            yield
            self.file.flush()
            if self.file is not stdout:
                self.file.detach()  # closing it would close standard output
            return
        with replacing_stream(self.files, Path(self.out)) as self.file:
            yield
