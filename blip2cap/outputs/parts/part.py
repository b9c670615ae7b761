"""One part in progress: a local journal, which becomes the part's object when it is complete.

The journal makes a part as safe as any output: after a kill, the next run continues it, and its lock keeps other
processes on this machine away. Beside it is a trace of the images that are being decoded, as for any output: if a
process dies, the next one decodes these images in separate processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip2cap.column_types import python_values
from blip2cap.decode.trace import Trace, trace_path
from blip2cap.errors import OutputError, OutputGoneError, OutputRefusedError
from blip2cap.outputs.existing_rows import manifest_path
from blip2cap.outputs.journal import JournalSink
from blip2cap.outputs.parquet_table import written_as
from blip2cap.outputs.parts.counts import KEY, read_counts
from blip2cap.outputs.parts.plan import PartsPlan, part_name
from blip2cap.outputs.parts.store import Store
from blip2cap.records import ImageRef
from blip2cap.rows import Row, row_key

_JOURNAL = re.compile(r"part-(\d{5,})(\.again)?\.jsonl")


class PartExistsError(OutputRefusedError):
    """A part that another process has finished."""


class Part:
    """A part of the plan, locked until it is closed; a sink for its rows.

    With `again`, the failed rows of an existing part are retried: all, or those with an error in `retry_only`. Raises
    OutputLockedError if another process has locked it, PartExistsError if another process has finished it.
    """

    def __init__(
        self, store: Store, plan: PartsPlan, index: int, *, again: bool = False, retry_only: Collection[str] = ()
    ) -> None:
        self.store, self.plan, self.index, self.again = store, plan, index, again
        self.name = part_name(index)
        self.schema = plan.manifest.schema
        path = store.scratch / plan.id / f"part-{index:05}{'.again' if again else ''}.jsonl"
        self._sink = _open(path, retry_failed=again)
        try:
            if not again and store.exists(self.name):  # checked under the lock, which may take long to get
                self._remove_leftovers()
                raise PartExistsError(f"{self.name} already exists.")
            self._labels_of = plan.labelled_refs(index)
            self.refs = list(self._labels_of)
            self.trace = Trace(trace_path(path))
            """Images of this part that are being decoded, or were when a process died."""
            self._kept = self._rows_to_keep(retry_only) if again else {}
            self._sink.begin({"plan": plan.id, "part": index, **plan.manifest.settings})
            found = self._read_rows()
        except OSError as error:
            self._sink.close()
            raise OutputError(f"{path.parent} cannot be read: {error.strerror}. Run the same command again.") from error
        except BaseException:
            self._sink.close()
            raise
        self.num_found = len(found.keys() - self._kept.keys())
        """Number of rows left by a run that was stopped."""
        self.finished = {*self._kept, *found}
        """Keys of the existing rows."""
        self.num_missing = plan.num_rows_of(index) - len(self.finished)
        """Number of missing rows."""

    @property
    def labels(self) -> Sequence[str | None] | None:
        """Labels of every image; None if they depend on the image."""
        return self.plan.labels

    def labels_of(self, ref: ImageRef) -> Sequence[str | None]:
        """Return the labels of an image of this part."""
        return self._labels_of[ref]

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows to the journal."""
        rows = list(rows)
        self._sink.write(rows)
        self.num_missing -= len(rows)

    def commit(self) -> bool:
        """Write the part's object, with rows in the order of the plan; return False if another process was faster."""
        assert self.num_missing == 0, f"{self.name}: {self.num_missing} rows are missing"
        rows = self._kept | self._read_rows()
        keys = [
            row_key(ref.file_name, ref.file_name_b64, label)
            for ref, labels in self._labels_of.items()
            for label in labels
        ]
        assert len(rows) == len(keys), f"{self.name}: {len(rows)} rows for {len(keys)} keys"
        data = self._as_parquet([rows[key] for key in keys])
        if self.again:
            self.store.replace(self.name, data)
            won = True
        else:
            won = self.store.create(self.name, data)
        self.discard()
        return won

    def discard(self) -> None:
        """Release a part whose object exists, and remove the files that it was made from."""
        self.trace.forget()
        self.trace.close()
        self._remove_leftovers()
        self._sink.close()

    def close(self) -> None:
        """Release an incomplete part; its rows are kept."""
        with contextlib.suppress(OutputError):
            self.trace.close()
        self._sink.close()

    def _remove_leftovers(self) -> None:
        try:
            _remove(self._sink)
        except OSError as error:
            raise OutputError(
                f"{self._sink.path.parent} cannot be changed: {error.strerror}. The finished parts are safe."
            ) from error

    def _rows_to_keep(self, retry_only: Collection[str]) -> dict[str, Row]:
        with self.store.open(self.name) as file:
            table = pq.read_table(file, page_checksum_verification=True)
            values = zip(*(python_values(each.combine_chunks()) for each in table.columns), strict=True)
            rows = [self.schema.parse(dict(zip(table.column_names, row, strict=True))) for row in values]
        return {row.key: row for row in rows if row.status == "ok" or (retry_only and row.error not in retry_only)}

    def _read_rows(self) -> dict[str, Row]:
        lines = self._sink.path.read_bytes().split(b"\n")[:-1]
        try:
            return {row.key: row for row in (self.schema.parse(json.loads(line)) for line in lines)}
        except (ValueError, KeyError, TypeError) as error:
            raise OutputRefusedError(
                f"{self._sink.path} is damaged: a row has other columns or values than its part ({error}). Move the "
                "file to another place, and run the same command again: it makes the rows of that file again."
            ) from error

    def _as_parquet(self, rows: Sequence[Row]) -> bytes:
        failed = Counter(row.error for row in rows if row.status != "ok")
        content: Mapping[str, Any] = {
            "plan": self.plan.id,
            "part": self.index,
            "ok": len(rows) - failed.total(),
            "failed": failed,
            "settings": dict(self.plan.manifest.settings),
        }
        table = pa.Table.from_batches([self.schema.batch(rows)])
        buffer = pa.BufferOutputStream()
        table = table.replace_schema_metadata({KEY: json.dumps(content)})
        pq.write_table(table, buffer, **written_as(self.schema), write_page_checksum=True)
        return bytes(buffer.getvalue().to_pybytes())


def num_rows_in_progress(store: Store, plan: PartsPlan, done: Set[int]) -> int:
    """Count the rows that this machine has of parts that do not exist yet."""
    count = 0
    for path, index, again in _journals(store.scratch / plan.id):
        if index not in done and not again:
            with contextlib.suppress(FileNotFoundError):  # completed in the meantime
                count += path.read_bytes().count(b"\n")
    return count


def sweep(store: Store, plan: PartsPlan, done: Set[int]) -> None:
    """Remove leftovers of finished parts, from runs that were killed just after they finished them."""
    for path, index, again in _journals(store.scratch / plan.id):
        if index in done:
            with contextlib.suppress(OSError, OutputError, OutputRefusedError):
                if again and read_counts(store, plan, [index])[index].num_failed:
                    continue  # the next --retry-failed continues with it
                with contextlib.closing(JournalSink(path, overwrite=True)) as sink:
                    _remove(sink)
    if len(done) == plan.num_parts:
        with contextlib.suppress(OSError):
            (store.scratch / plan.id).rmdir()  # unless failed rows are being retried


def _journals(folder: Path) -> Iterator[tuple[Path, int, bool]]:
    """Yield the journals of parts, the index of each part, and whether its failed rows are retried in it."""
    for path in sorted(folder.glob("part-*.jsonl")):
        if match := _JOURNAL.fullmatch(path.name):
            yield path, int(match[1]), match[2] is not None


def _open(path: Path, *, retry_failed: bool) -> JournalSink:
    remedy = f"Move {path} to another place, and run the same command again: it makes the rows of that file again."
    while True:
        try:
            # Not Path.mkdir(exist_ok=True), which raises FileExistsError if the folder is swept between its two looks.
            with contextlib.suppress(FileExistsError):
                os.mkdir(path.parent)
            return JournalSink(path, retry_failed=retry_failed, remedy=remedy)
        except OutputGoneError:
            continue  # another process has swept the empty folder
        except OSError as error:
            raise OutputError(
                f"{path.parent} cannot be written: {error.strerror}. Free disk space, then run it again."
            ) from error


def _remove(sink: JournalSink) -> None:
    """Remove a journal and the files beside it; the journal last, because `sweep` looks for it to find the others."""
    path, manifest = sink.path, manifest_path(sink.path)
    half_written = (each.with_name(f"{each.name}.tmp") for each in (path, manifest))
    for leftover in (trace_path(path), *half_written):
        leftover.unlink(missing_ok=True)
    with contextlib.suppress(OutputGoneError):  # another process has swept the empty folder
        sink.remove()
