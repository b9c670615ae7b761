"""One small file for each image: captions as text, descriptions as XMP."""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.sax.saxutils import escape

from blip2cap.errors import UsageError
from blip2cap.outputs.export.item import Item, one_line
from blip2cap.outputs.export.options import SEPARATOR, ExportOptions
from blip2cap.outputs.export.reasons import COLLISION, EMPTY, EXISTING, IN_ARCHIVE, MISSING_IMAGE, NOT_TEXT, OUTSIDE
from blip2cap.outputs.export.writer import Writer
from blip2cap.outputs.files import OS_FILES, Files, write_whole
from blip2cap.outputs.manifest import Manifest

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
"""Characters that XML forbids, beyond the controls that `one_line` removes."""


class Sidecars(Writer):
    """Files named after the images, beside them or in the same folders below --out, as are the images of archives."""

    writes_entries = True

    def __init__(
        self, options: ExportOptions, root: str, manifest: Manifest | None = None, files: Files = OS_FILES
    ) -> None:
        super().__init__(options, root, manifest, files)
        self.needs_root = options.out is None
        self.extension = options.extension or self.extension

    def output_path(self) -> str:
        """Return the folder, "" for beside the images."""
        return self.options.out or ""

    def check(self) -> None:
        """Refuse an --out that is no folder."""
        if os.path.lexists(self.out) and not os.path.isdir(self.out):
            raise UsageError(f"--out {self.out}: no folder. {self.options.to} is one file for each image.")

    def path(self, item: Item) -> str:
        """Return the path of the sidecar of an image, "" if it would not be below --out."""
        image = item.image_path
        if self.out:
            image = os.path.join(self.out, item.path_in_out) if item.path_in_out else ""
        return os.path.splitext(image)[0] + self.extension if image else ""

    def output_name(self, item: Item) -> str:
        """Return the absolute path of the sidecar, which `cat.png` and `cat.jpg` would share."""
        path = self.path(item)
        return os.path.normpath(os.path.abspath(path)) if path else ""

    def skip_reason(self, item: Item) -> str:
        """Leave out items without a path, an image beside it or a text, and existing sidecars."""
        path = self.path(item)
        if not self.out and item.member:
            return IN_ARCHIVE
        if not self.out and not self.images.has(item):
            return MISSING_IMAGE
        if not path or (self.out and not self.is_below(path)):
            return OUTSIDE
        if not any(map(one_line, item.captions)):
            return EMPTY
        if self.options.existing == "skip" and os.path.lexists(path):
            return EXISTING
        return MISSING_IMAGE if item.member and not self.images.has(item) else ""

    def write(self, item: Item) -> str:
        """Write one sidecar; a name that a power cut removes is written by the next export."""
        path, content = Path(self.path(item)), self.content(item).encode()
        if self.out:
            path.parent.mkdir(parents=True, exist_ok=True)
        if item.member and not self.extract(item):
            return COLLISION
        write_whole(self.files, path, content, unique=True, sync_name=False)
        return ""

    def content(self, item: Item) -> str:
        """Return the content of the file."""
        raise NotImplementedError


class TextSidecars(Sidecars):
    """`dir/cat.jpg` -> `dir/cat.txt`: UTF-8, a line for each caption."""

    extension = ".txt"

    def skip_reason(self, item: Item) -> str:
        """Leave out, too, captions that are joined already, or that cannot be joined with what is not text."""
        reason = super().skip_reason(item)
        if reason or self.options.existing not in ("append", "prepend"):
            return reason
        try:
            return EXISTING if self.content(item) == self._existing(item) else ""
        except UnicodeDecodeError:
            return NOT_TEXT

    def content(self, item: Item) -> str:
        """Return the lines, joined with the existing one if asked for; only once, so that an export can be repeated."""
        text, mode = one_line(item.text) if len(item.captions) == 1 else item.lines, self.options.existing
        existing = self._existing(item) if mode in ("append", "prepend") else ""
        separator = SEPARATOR if self.options.separator is None else self.options.separator
        if not existing or existing == text:
            return text
        if mode == "append":
            return existing if existing.endswith(separator + text) else existing + separator + text
        return existing if existing.startswith(text + separator) else text + separator + existing

    def _existing(self, item: Item) -> str:
        """Read the existing caption, "" if there is none."""
        path = self.path(item)
        if not os.path.isfile(path):  # what is there instead is refused by the write
            return ""
        with open(path, encoding="utf-8-sig") as file:
            return one_line(file.read())


class XmpSidecars(Sidecars):
    """`dir/cat.jpg` -> `dir/cat.xmp` with the text as dc:description; the image is not changed."""

    extension = ".xmp"

    def content(self, item: Item) -> str:
        """Return the packet."""
        return _XMP.format(escape(_NOT_XML.sub(" ", one_line(item.text))))
