"""Which writer makes which format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blip2cap.errors import UsageError
from blip2cap.outputs.export.annotations import Coco, LabelStudio
from blip2cap.outputs.export.metadata import ImageFolder, Kohya
from blip2cap.outputs.export.options import ExportOptions
from blip2cap.outputs.export.shards import Shards
from blip2cap.outputs.export.sidecars import TextSidecars, XmpSidecars
from blip2cap.outputs.export.tables import Csv, Jsonl, Parquet
from blip2cap.outputs.export.writer import Writer

_WRITERS: Mapping[str, type[Writer]] = {
    "txt": TextSidecars,
    "imagefolder": ImageFolder,
    "kohya": Kohya,
    "csv": Csv,
    "coco": Coco,
    "webdataset": Shards,
    "xmp": XmpSidecars,
    "parquet": Parquet,
    "jsonl": Jsonl,
}


def make_writer(options: ExportOptions, root: str, settings: Mapping[str, Any]) -> Writer:
    """Make the writer of a format. `settings` are those that the rows were made with.

    Raises UsageError if it may not write where it is asked to, or if nobody knows where the images are.
    """
    if options.to == "labelstudio":
        writer: Writer = LabelStudio(options, root, str(settings.get("model", "blip2cap")))
    else:
        writer = _WRITERS[options.to](options, root)
    if writer.needs_root and not root:
        raise UsageError(f"--to {options.to}: nothing says where the images are. Give --images DIR.")
    writer.check()
    return writer
