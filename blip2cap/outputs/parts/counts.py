"""The counts of rows in the parts of a folder, read from their metadata: the only record of progress."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from blip2cap.errors import OutputRefusedError
from blip2cap.outputs.parts.plan import PartsPlan, part_name
from blip2cap.outputs.parts.store import Store

KEY = b"blip2cap"
"""Key of the counts in a part's metadata."""
_NUM_READERS = 16
"""Number of parts read concurrently: in a bucket, each takes some time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Number of rows in one or several parts."""

    num_ok: int
    failed: Mapping[str, int]
    """Number of failed rows by error."""

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.num_ok + self.num_failed

    @property
    def num_failed(self) -> int:
        """Number of failed rows."""
        return sum(self.failed.values())


def done_parts(store: Store, plan: PartsPlan) -> set[int]:
    """Return the indices of the existing parts."""
    names = store.names()
    return {index for index in range(plan.num_parts) if part_name(index) in names}


def stray_files(store: Store, plan: PartsPlan) -> list[str]:
    """Return the names of other Parquet files beside the parts, such as copies of them; nothing reads them."""
    names = {name for name in store.names() if name.endswith(".parquet")}
    return sorted(names - {part_name(index) for index in range(plan.num_parts)})


def read_counts(store: Store, plan: PartsPlan, indices: Iterable[int]) -> dict[int, Counts]:
    """Read the counts of parts. Raises OutputRefusedError for a part that is damaged or belongs to another plan.

    In a local folder all pages of the parts are compared with their checksums; buckets do so by themselves.
    """
    indices = list(indices)
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return dict(zip(indices, pool.map(lambda index: _read(store, plan, index), indices), strict=True))


def total(counts: Iterable[Counts]) -> Counts:
    """Add up counts."""
    num_ok, failed = 0, Counter[str]()
    for one in counts:
        num_ok += one.num_ok
        failed.update(one.failed)
    return Counts(num_ok=num_ok, failed=failed)


def _read(store: Store, plan: PartsPlan, index: int) -> Counts:
    name = part_name(index)
    try:
        with store.open(name) as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            content = json.loads(parquet.metadata.metadata[KEY])
            if content["plan"] != plan.id:
                raise ValueError("it belongs to another plan")
            counts = Counts(num_ok=content["ok"], failed=content["failed"])
            if not parquet.schema_arrow.remove_metadata().equals(plan.manifest.schema.arrow()):
                raise ValueError("its columns differ from those of its plan")
            num_rows = parquet.metadata.num_rows if store.shared else _num_rows(parquet)
            if counts.num_rows != num_rows:
                raise ValueError("its counts differ from its rows")
        return counts
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise OutputRefusedError(
            f"{store.url}{name} is damaged, or was not made here: {error}. Move it to another folder, and run the "
            "command that made it again: it makes just that part again."
        ) from error


def _num_rows(parquet: pq.ParquetFile) -> int:
    """Count rows by reading all pages, which compares each with its checksum. Raises OSError or pa.ArrowException."""
    num_rows = 0
    for batch in parquet.iter_batches():
        batch.validate()
        num_rows += batch.num_rows
    return num_rows
