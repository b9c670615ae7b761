"""Name of a format -> its writer."""

from __future__ import annotations

from collections.abc import Mapping

from blip2cap.outputs.export.annotations import Coco, LabelStudio
from blip2cap.outputs.export.metadata import ImageFolder, Kohya
from blip2cap.outputs.export.options import ExportOptions
from blip2cap.outputs.export.shards import Shards
from blip2cap.outputs.export.sidecars import TextSidecars, XmpSidecars
from blip2cap.outputs.export.tables import Csv, Jsonl, Parquet
from blip2cap.outputs.export.writer import Writer
from blip2cap.outputs.files import OS_FILES, Files
from blip2cap.outputs.manifest import Manifest

_WRITERS: Mapping[str, type[Writer]] = {
    "txt": TextSidecars,
    "imagefolder": ImageFolder,
    "kohya": Kohya,
    "csv": Csv,
    "coco": Coco,
    "webdataset": Shards,
    "labelstudio": LabelStudio,
    "xmp": XmpSidecars,
    "parquet": Parquet,
    "jsonl": Jsonl,
}


def make_writer(options: ExportOptions, root: str, manifest: Manifest | None, files: Files = OS_FILES) -> Writer:
    """Make the writer of a format. `manifest` is that of the rows, None if they have none.

    Raises UsageError if the output must not be written there.
    """
    writer = _WRITERS[options.to](options, root, manifest, files)
    writer.check()
    return writer
