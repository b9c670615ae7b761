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


def read_counts(store: Store, plan: PartsPlan, indices: Iterable[int]) -> dict[int, Counts]:
    """Read the counts of parts. Raises OutputRefusedError for a part that is damaged or belongs to another plan."""
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
        with store.open(name) as file:
            content = json.loads(pq.read_metadata(file).metadata[KEY])
        if content["plan"] != plan.id:
            raise ValueError("it belongs to another plan")
        return Counts(num_ok=content["ok"], failed=content["failed"])
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise OutputRefusedError(
            f"{store.url}{name} is damaged, or was not made here: {error}. Remove it, and run the same command again."
        ) from error
