"""One small file for each image: captions as text, descriptions as XMP."""

from __future__ import annotations

import os
import re
from xml.sax.saxutils import escape

from blip2cap.errors import UsageError
from blip2cap.outputs.export.atomic import write_whole
from blip2cap.outputs.export.item import Item, one_line
from blip2cap.outputs.export.options import SEPARATOR, ExportOptions
from blip2cap.outputs.export.writer import EMPTY, EXISTING, MISSING_IMAGE, NOT_TEXT, OUTSIDE, Writer

_XMP = """\
<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">{}</rdf:li>
    </rdf:Alt>
   </dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
_NOT_XML = re.compile("[\ufffe\uffff]")
"""What XML forbids beyond the controls that `one_line` has taken out."""


class Sidecars(Writer):
    """Files named after the images, beside them or in the same folders below --out."""

    extension = ""

    def __init__(self, options: ExportOptions, root: str) -> None:
        super().__init__(options, root)
        self.needs_root = options.out is None
        self._real_out = os.path.realpath(self.out) if self.out else ""
        self._folders: tuple[str, bool] = ("", False)

    def place(self) -> str:
        """Return the folder, "" for beside the images."""
        return self.options.out or ""

    def check(self) -> None:
        """Refuse what is no folder."""
        if os.path.lexists(self.out) and not os.path.isdir(self.out):
            raise UsageError(f"--out {self.out}: no folder. {self.options.to} is one file for each image.")

    def path(self, item: Item) -> str:
        """Say where the sidecar of an image lies; "" if that is not below --out."""
        if not self.out:
            return os.path.splitext(item.image)[0] + self.extension if item.image else ""
        return os.path.join(self.out, os.path.splitext(item.landing)[0] + self.extension) if item.landing else ""

    def key(self, item: Item) -> str:
        """Name the file: `cat.png` and `cat.jpg` have one between them."""
        path = self.path(item)
        return os.path.normpath(os.path.abspath(path)) if path else ""

    def reason(self, item: Item) -> str:
        """Leave out what has no place, no image beside it, or no text; and what is there already."""
        path = self.path(item)
        if not self.out and not item.has_image:
            return MISSING_IMAGE
        if not path or not self._stays_below(os.path.dirname(path)):
            return OUTSIDE
        if not one_line(item.row.text):
            return EMPTY
        return EXISTING if self.options.existing == "skip" and os.path.lexists(path) else ""

    def write(self, item: Item) -> str:
        """Write one sidecar, whole."""
        path = self.path(item)
        if self.out:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, self.content(item).encode())
        return ""

    def content(self, item: Item) -> str:
        """Return what stands in the file."""
        raise NotImplementedError

    def _stays_below(self, folder: str) -> bool:
        """Whether no link on the way leads out of --out. Rows of one folder follow each other."""
        if not self.out:
            return True
        if self._folders[0] != folder:
            below = os.path.commonpath((self._real_out, os.path.realpath(folder))) == self._real_out
            self._folders = (folder, below)
        return self._folders[1]


class TextSidecars(Sidecars):
    """`dir/cat.jpg` -> `dir/cat.txt`: UTF-8, one line."""

    extension = ".txt"

    def __init__(self, options: ExportOptions, root: str) -> None:
        super().__init__(options, root)
        self.extension = options.extension or self.extension
        self.separator = SEPARATOR if options.separator is None else options.separator

    def content(self, item: Item) -> str:
        """Return the line."""
        return one_line(item.text)

    def reason(self, item: Item) -> str:
        """Leave out, too, what cannot be joined with what is there, or has been already."""
        reason = super().reason(item)
        if reason or self.options.existing not in ("append", "prepend"):
            return reason
        try:
            there = self._there(item)
        except UnicodeDecodeError:
            return NOT_TEXT
        return EXISTING if there == self._joined(there, item) else ""

    def write(self, item: Item) -> str:
        """Write one sidecar, joined with what is there if that is wanted."""
        if self.options.existing not in ("append", "prepend"):
            return super().write(item)
        path = self.path(item)
        if self.out:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, self._joined(self._there(item), item).encode())
        return ""

    def _there(self, item: Item) -> str:
        """Read the caption that is there, "" if there is none."""
        try:
            with open(self.path(item), encoding="utf-8-sig") as file:
                return one_line(file.read())
        except FileNotFoundError:
            return ""

    def _joined(self, there: str, item: Item) -> str:
        """Join two captions; once only, so that an export that was cut off can be done again."""
        ours = self.content(item)
        if not there or there == ours:
            return ours
        if self.options.existing == "append":
            return there if there.endswith(self.separator + ours) else there + self.separator + ours
        return there if there.startswith(ours + self.separator) else ours + self.separator + there


class XmpSidecars(Sidecars):
    """`dir/cat.jpg` -> `dir/cat.xmp` with the text as dc:description; the image stays as it is."""

    extension = ".xmp"

    def content(self, item: Item) -> str:
        """Return the packet."""
        return _XMP.format(escape(_NOT_XML.sub(" ", one_line(item.text))))
