"""Segments merged into one, without the images that were removed: which, and the rows and the list of the new one.

As in a log-structured merge. A search opens every segment, so that many small ones cost time; and a merge writes its
images again, so that not every update can merge all. The newest segments are merged when there are `_MOST` of which
each is at most as large as all newer ones together. So an image that was just embedded may be written once more, and
after that only when the segment that it is in at least doubles: N images in updates of M are written at most
1 + log2(N / M) times, log8 of it if all updates are alike, and are in at most 7 log2(N / M) segments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from blip2cap.index import build
from blip2cap.index.catalog import damaged
from blip2cap.index.segment import EMBEDDINGS
from blip2cap.outputs.files import Files
from blip2cap.outputs.parquet_table import embedded_manifest, write_table

if TYPE_CHECKING:
    import pyarrow as pa

_MOST = 8
"""Number of segments that are merged."""


def choose(kept: Sequence[int], removed: Sequence[int]) -> slice | None:
    """Return the segments to merge, given the numbers of kept and removed images of each, the oldest first.

    One segment alone is written anew if more of it was removed than is kept. None if nothing is to do.
    """
    first = len(kept)
    num_newer = 0
    while first and (first == len(kept) or kept[first - 1] <= num_newer):
        first -= 1
        num_newer += kept[first]
    if len(kept) - first >= _MOST:
        return slice(first, len(kept))
    return next((slice(at, at + 1) for at in range(len(kept)) if removed[at] > kept[at]), None)


def merged_list(tables: Sequence[pa.Table]) -> pa.Table:
    """Return one list of the images of some, without those that were removed."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.concat_tables([table.filter(pc.invert(table["removed"])) for table in tables])
    ok = table["vector"].to_numpy() >= 0
    at = table.schema.get_field_index("vector")
    return table.set_column(at, table.schema.field(at), pa.array(np.where(ok, np.cumsum(ok) - 1, -1), pa.int32()))


def merge_rows(folders: Sequence[Path], tables: Sequence[pa.Table], target: Path, files: Files) -> None:
    """Write the rows of some segments to the Parquet file of another, without those of images that were removed.

    Every page is compared with its checksum. Raises OutputRefusedError for a damaged file, OSError.
    """
    manifest = embedded_manifest(folders[0] / EMBEDDINGS)
    if manifest is None:
        raise damaged(folders[0] / EMBEDDINGS, "its settings cannot be read")
    errors = Counter(error for table in tables for error in _kept(table, "error"))
    counts = {"ok": errors.pop("", 0), "failed": dict(errors)}
    write_table(target, replace(manifest, counts=counts), _rows(folders, tables), files)


def _rows(folders: Sequence[Path], tables: Sequence[pa.Table]) -> Iterator[pa.RecordBatch]:
    """Yield the rows to keep; those of a segment are in the order of its list."""
    for folder, table in zip(folders, tables, strict=True):
        kept, start = _kept_mask(table), 0
        for batch in build.read_rows(folder / EMBEDDINGS):
            if start + len(batch) <= len(kept):
                yield batch.filter(kept[start : start + len(batch)]).replace_schema_metadata(None)
            start += len(batch)
        if start != len(kept):
            raise damaged(folder / EMBEDDINGS, f"expected {len(kept)} rows, found {start}")


def _kept_mask(table: pa.Table) -> pa.BooleanArray:
    import pyarrow.compute as pc

    return pc.invert(table["removed"].combine_chunks())


def _kept(table: pa.Table, column: str) -> list[str]:
    values: list[str] = table[column].combine_chunks().filter(_kept_mask(table)).to_pylist()
    return values
