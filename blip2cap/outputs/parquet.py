"""Rows -> a Parquet file, through a journal.

During a run, rows go to NAME.parquet.jsonl, a journal like any other. At the end, they and the rows of an existing
Parquet file are written to a new one, which replaces it atomically; then the journal is removed. A crash between the
two leaves both: if a row is in both, the journal's is used.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2cap.errors import OutputError, OutputRefusedError
from blip2cap.key_set import KeySet
from blip2cap.outputs import existing_rows
from blip2cap.outputs.existing_rows import Journal, read_lines
from blip2cap.outputs.files import OS_FILES, Files, behind, replaceable, sync_folder
from blip2cap.outputs.journal import JournalSink
from blip2cap.outputs.manifest import Manifest
from blip2cap.outputs.parquet_table import BATCH, Table, keys_in, open_table, read_table, write_table
from blip2cap.rows import Row, Schema

if TYPE_CHECKING:
    import pyarrow as pa


def journal_path(path: Path) -> Path:
    """Return the path of the journal, which has the rows that are not in the Parquet file yet."""
    return path.with_name(f"{path.name}.jsonl")


def read_output(path: Path, *, retry_failed: bool = False) -> tuple[Manifest | None, Journal]:
    """Read the Parquet file and the journal of an output, and the manifest of its rows, None if there are no rows.

    Raises OutputRefusedError if one is damaged or not made by blip2cap.
    """
    path = behind(path)
    manifest, journal = existing_rows.read_output(journal_path(path), retry_failed=retry_failed)
    table = read_table(path, journal, retry_failed=retry_failed)
    return table.manifest if table else manifest, journal


class ParquetSink:
    """Writes rows to a journal, and at the end to a Parquet file; resumable.

    Opening takes the journal's lock and reads existing rows. Raises what JournalSink raises.
    """

    def __init__(
        self, path: Path, *, overwrite: bool = False, retry_failed: bool = False, files: Files = OS_FILES
    ) -> None:
        try:
            replaceable(files, path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}. Use another --out.") from error
        self.path = path
        self._files, self._overwrite, self._retry_failed = files, overwrite, retry_failed
        self._target = behind(path)
        self._begun = self._moved = False
        self._sink = JournalSink(
            journal_path(self._target), overwrite=overwrite, retry_failed=retry_failed, files=files
        )
        self._table: Table | None = None
        try:
            if not overwrite:
                self._table = read_table(self._target, self._sink.journal, retry_failed=retry_failed)
            self._num_failed_before = 0 if retry_failed else self._sink.journal.num_failed
        except BaseException:
            self._sink.close()
            raise

    @property
    def finished(self) -> KeySet:
        """Keys of the existing rows; with `retry_failed`, only of those that are ok."""
        return self._sink.finished

    @property
    def first_key(self) -> str:
        """Key of the first existing row, "" without rows."""
        return self._sink.first_key

    @property
    def num_failed(self) -> int:
        """Number of existing failed rows, without those that are retried."""
        return self._num_failed_before

    @property
    def made_with(self) -> Mapping[str, Any] | None:
        """Settings of the existing rows; None without rows."""
        return self._table.manifest.settings if self._table else self._sink.made_with

    @property
    def torn_bytes(self) -> int:
        """Length of a torn last line of the journal, which `begin` removes."""
        return self._sink.torn_bytes

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise OutputRefusedError if existing rows were made with other settings."""
        if self._table:
            self._table.manifest.check(settings, self.path.name)
        self._sink.check(settings)

    @property
    def failed_keys(self) -> KeySet:
        """Keys of the existing failed rows, also of those that are retried."""
        return self._sink.failed_keys

    def retry(self, asked: Container[str], only: Collection[str] = ()) -> None:
        """Retry only the failed rows with these keys and, if `only` is given, these errors; comes before begin().

        Without a call, all are retried.
        """
        self._sink.retry(asked, only)
        self._num_failed_before = self._sink.num_failed

    def move(self, root: str) -> None:
        """Change the root of the inputs, whose folder was renamed; recorded by finish()."""
        self._sink.move(root)
        if self._table:
            manifest = self._table.manifest.moved(root)
            self._moved = manifest != self._table.manifest
            self._table = replace(self._table, manifest=manifest)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Check the settings and begin the journal; with `overwrite`, remove the Parquet file."""
        self.check(settings)
        self._sink.begin(settings)
        if self._overwrite:
            try:
                with contextlib.suppress(FileNotFoundError):
                    self._files.unlink(self._target)
                sync_folder(self._files, self._target.parent)
            except OSError as error:
                raise self._failed(error) from error
        self._begun = True

    def write(self, rows: Iterable[Row]) -> None:
        """Append one batch to the journal and wait until the disk has it."""
        self._sink.write(rows)

    def finish(self, *, stopped: bool = False) -> None:
        """Write the Parquet file and remove the journal; a run that was `stopped` keeps the journal."""
        self._sink.finish(stopped=True)  # it is unfinished until there is a Parquet file
        if stopped:
            return
        removed = self._begun and (self._table is None or self._sink.again)
        if self._sink.journal.num_bytes or removed or self._moved:
            try:
                self._write_table()
            except OSError as error:
                raise self._failed(error) from error
        self._sink.remove()

    def close(self) -> None:
        """Release the lock."""
        self._sink.close()

    def _write_table(self) -> None:
        """Write the rows of the old Parquet file and of the journal to a new one, which replaces it atomically."""
        manifest = self._table.manifest if self._table else self._sink.manifest
        assert manifest is not None, "rows have a manifest"
        counts = {"ok": self._sink.journal.num_ok, "failed": dict(self._sink.journal.failed)}
        batches = itertools.chain(self._old_batches(), self._new_batches(manifest.schema))
        write_table(self._target, replace(manifest, counts=counts), batches, self._files)

    def _old_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the old file that are neither in the journal nor retried by this run."""
        import pyarrow as pa

        if self._table is None:
            return
        gone, label = self._table.replaced | self._sink.again, self._table.manifest.label
        with open_table(self._target) as parquet:
            for batch in parquet.iter_batches(batch_size=self._table.manifest.schema.num_rows(BATCH)):
                if gone:
                    kept = [key not in gone for key, _, _ in keys_in(batch, label)]
                    batch = batch.filter(pa.array(kept, pa.bool_()))
                yield batch.replace_schema_metadata(None)

    def _new_batches(self, schema: Schema) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the journal. Raises OutputRefusedError for a row with other columns."""
        import pyarrow as pa

        lines = (line for line in read_lines(self._files, self._sink.path) if line.endswith(b"\n"))
        number = 0
        while rows := [json.loads(line) for line in itertools.islice(lines, schema.num_rows(BATCH))]:
            try:
                for row in rows:
                    number += 1
                    if [*row] != schema.names or None in row.values():
                        raise TypeError(f"the columns of line {number} differ from those in its manifest")
                yield schema.batch(map(schema.parse, rows))
            except (TypeError, ValueError, pa.ArrowException) as error:
                raise OutputRefusedError(
                    f"{self._sink.path} is damaged: {error}. Repair or delete that line, or use another --out."
                ) from error

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path} cannot be written: {error.strerror}. Its rows are safe in {self._sink.path.name}; "
            "free disk space or repair the disk, then run the same command again."
        )
