"""The rows that a run has written for a segment -> the list of its images, and the shape of their embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from blip2cap.index import build
from blip2cap.index.catalog import damaged
from blip2cap.index.changes import UNREAD
from blip2cap.index.embedding import read_digests
from blip2cap.index.folder import DIGESTS, PLAN
from blip2cap.index.images import read_table
from blip2cap.index.known import Known, keys_of
from blip2cap.index.segment import EMBEDDINGS

if TYPE_CHECKING:
    import pyarrow as pa


def list_rows(inner: Path, known: Known) -> pa.Table:
    """Return the list of the images of a segment: of each row, what the plan says, and how it went.

    An image that could not be read is removed from it if an older segment has its embedding.
    """
    import pyarrow as pa

    plan = read_table(inner / PLAN)
    numbers = {key: number for number, key in enumerate(keys_of(plan))}
    places, errors, unread = list[int](), list[str](), list[bool]()
    for batch in build.read_rows(inner / EMBEDDINGS, ["file_name", "file_name_b64", "error"]):
        errors += (new := batch["error"].to_pylist())
        for key, error in zip(keys_of(batch), new, strict=True):
            unread.append(error in UNREAD and known.has_vector(key))
            if key not in numbers:
                raise damaged(inner / EMBEDDINGS, f"{key.split(chr(0))[0]} is not in {PLAN}")
            places.append(numbers[key])
    table = plan.take(pa.array(places, pa.int64()))
    found = read_digests(inner / DIGESTS, len(plan))
    ok = np.array([not error for error in errors], bool)
    columns = {
        "digest": pa.array([found.get(place, b"") for place in places], pa.binary()),
        "error": pa.array(errors, pa.string()),
        "vector": pa.array(np.where(ok, np.cumsum(ok) - 1, -1), pa.int32()),
        "removed": pa.array(unread, pa.bool_()),
    }
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), values)
    return table


def shape_of(path: Path) -> tuple[int, int]:
    """Return rows of an image and length of a row, from the type of the column in a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        outer = pq.read_schema(path).field("embedding").type
        return int(outer.list_size), int(outer.value_type.list_size)
    except (OSError, KeyError, AttributeError, pa.ArrowException) as error:
        raise damaged(path, str(error).splitlines()[0]) from error
