"""One part in work: a local journal, which becomes the part's object when its last row is there.

The journal makes a part as safe as any output: what is killed goes on where it was, and nobody else on this machine
works on the same part, as it is locked. Beside it a count of the times that a process died over this part without a new
row: after three of them its images are done one at a time, each noted before it is read, so that the one that kills is
found.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip2cap.errors import OutputError, OutputRefusedError
from blip2cap.outputs.journal import JournalSink, manifest_path
from blip2cap.outputs.parts.counts import KEY, read_counts
from blip2cap.outputs.parts.plan import PartsPlan, part_name
from blip2cap.outputs.parts.store import Store
from blip2cap.outputs.schema import table
from blip2cap.records import Row, row_key

MOST_DEATHS = 3
"""Then the images of a part are done one at a time."""
_JOURNAL = re.compile(r"part-(\d{5,})(\.again)?\.jsonl")


class Part:
    """A part of the plan, locked until it is closed; a sink for its rows.

    With `again`, the failed rows of a part that is there are made anew. Raises OutputRefusedError if another process
    holds it, or has made it; `is_locked` and `is_there` tell these from other reasons.
    """

    def __init__(self, store: Store, plan: PartsPlan, index: int, *, again: bool = False) -> None:
        self.store, self.plan, self.index, self.again = store, plan, index, again
        self.name = part_name(index)
        folder = store.scratch / plan.id
        path = folder / f"part-{index:05}{'.again' if again else ''}.jsonl"
        self._noted = False
        self._deaths, self._current = path.with_suffix(".deaths"), path.with_suffix(".current")
        try:
            self._sink = _open(path, retry_failed=again)
            try:
                if not again and store.exists(self.name):  # asked only by who has the lock: others may wait long
                    self._remove_leftovers()
                    raise OutputRefusedError(f"{self.name} is there already.") from FileExistsError()
                self.refs = plan.refs(index)
                self._kept = self._rows_to_keep() if again else {}
                self._sink.begin({"plan": plan.id, "part": index, **plan.manifest.settings})
                journal = _read_rows(path)
                self._num_rows = len(journal)
                self.num_deaths = self._deaths_at(self._num_rows)
                """Of processes that had this part in work and made no row of it."""
                self._count_deaths(self.num_deaths + 1)
            except BaseException:
                self._sink.close()
                raise
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror}. Make room, and run it again.") from error
        questions = plan.manifest.settings.get("questions")
        self._questions: Sequence[str | None] = questions or (None,)
        self.num_found = len(journal.keys() - self._kept.keys())
        """Rows of a run that was stopped."""
        self.finished = {*self._kept, *journal}
        """Keys of the rows that are there."""
        self.num_missing = len(self.refs) * len(self._questions) - len(self.finished)
        """Rows to come."""

    @property
    def num_failed(self) -> int:
        """How many of those have failed."""
        return self._sink.num_failed

    @property
    def is_dangerous(self) -> bool:
        """Whether its images are to be done one at a time."""
        return self.num_deaths >= MOST_DEATHS or self.culprit() != ""

    def culprit(self) -> str:
        """Name the image that was in work, alone, when a process died; "" if there is none."""
        return os.fsdecode(_read(self._current))

    def note(self, name: str) -> None:
        """Remember which image comes next; a process that dies now dies over this one."""
        self._noted = True
        try:
            self._current.write_bytes(os.fsencode(name))
        except OSError as error:
            raise OutputError(f"{self._current} cannot be written: {error.strerror}. Make room.") from error

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Opening has done it."""

    def write(self, rows: Iterable[Row]) -> None:
        """Append to the journal."""
        rows = list(rows)
        self._sink.write(rows)
        self._num_rows += len(rows)
        self.num_missing -= len(rows)

    def finish(self, *, stopped: bool) -> None:
        """Nothing: `commit` does it."""

    def commit(self) -> bool:
        """Write the part's object from its rows, in the order of the plan; False if another process was faster."""
        assert self.num_missing == 0, f"{self.name}: {self.num_missing} rows are missing"
        rows = self._kept | _read_rows(self._sink.path)
        keys = [
            row_key(ref.file_name, ref.file_name_b64, question) for ref in self.refs for question in self._questions
        ]
        assert len(rows) == len(keys), f"{self.name}: {len(rows)} rows for {len(keys)} keys"
        data = _as_parquet([rows[key] for key in keys], self.plan, self.index)
        if self.again:
            self.store.replace(self.name, data)
            won = True
        else:
            won = self.store.create(self.name, data)
        self.discard()
        return won

    def discard(self) -> None:
        """Let go of a part whose object is there, and of what was kept to make it."""
        self._remove_leftovers()
        self._sink.close()

    def close(self) -> None:
        """Let go of a part that is not done; its rows are kept. No death: this process is still there."""
        with contextlib.suppress(OSError):
            self._count_deaths(self.num_deaths)
            if self._noted:
                self._current.unlink(missing_ok=True)
        self._sink.close()

    def _remove_leftovers(self) -> None:
        try:
            _remove(self._sink)
        except OSError as error:
            raise OutputError(
                f"{self._sink.path.parent} cannot be changed: {error.strerror}. The parts that are there are safe."
            ) from error

    def _deaths_at(self, num_rows: int) -> int:
        """Read how many processes have died since there were so many rows; a new row starts the count anew."""
        num_deaths, num_rows_then, *_ = (*map(int, _read(self._deaths).split()), 0, 0)
        return num_deaths if num_rows <= num_rows_then else 0

    def _count_deaths(self, num_deaths: int) -> None:
        self._deaths.write_text(f"{num_deaths} {self._num_rows}")

    def _rows_to_keep(self) -> dict[str, dict[str, Any]]:
        with self.store.open(self.name) as file:
            rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return {_key(row): row for row in rows if row["status"] == "ok"}


def is_locked(error: OutputRefusedError) -> bool:
    """Whether a part was refused as another process has it in work."""
    return isinstance(error.__cause__, BlockingIOError)


def is_there(error: OutputRefusedError) -> bool:
    """Whether a part was refused as another process has made it."""
    return isinstance(error.__cause__, FileExistsError)


def num_rows_in_work(store: Store, plan: PartsPlan, done: Set[int]) -> int:
    """Count the rows of parts that are not there yet, as far as this machine has them."""
    journals = _journals(store.scratch / plan.id)
    return sum(_read(path).count(b"\n") for path, index, again in journals if index not in done and not again)


def sweep(store: Store, plan: PartsPlan, done: Set[int]) -> None:
    """Remove what runs that were killed at the last moment have left of parts that are done."""
    for path, index, again in _journals(store.scratch / plan.id):
        if index in done:
            with contextlib.suppress(OSError, OutputError, OutputRefusedError):
                if again and read_counts(store, plan, [index])[index].num_failed:
                    continue  # the next --retry-failed goes on with it
                with contextlib.closing(JournalSink(path, overwrite=True)) as sink:
                    _remove(sink)
    if len(done) == plan.num_parts:
        with contextlib.suppress(OSError):
            (store.scratch / plan.id).rmdir()  # unless failed rows are being made again


def _journals(folder: Path) -> Iterator[tuple[Path, int, bool]]:
    """Yield the journals of parts, which part each is of, and whether its failed rows are made again in it."""
    for path in sorted(folder.glob("part-*.jsonl")):
        if match := _JOURNAL.fullmatch(path.name):
            yield path, int(match[1]), match[2] is not None


def _open(path: Path, *, retry_failed: bool) -> JournalSink:
    remedy = f"Remove {path}, and run the same command again: it does the rows of that file anew."
    while True:
        path.parent.mkdir(exist_ok=True)
        try:
            return JournalSink(path, retry_failed=retry_failed, remedy=remedy)
        except OutputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # else another process has swept the empty folder
                raise


def _remove(sink: JournalSink) -> None:
    """Take a journal and all that is beside it away; itself last, as only who finds it looks for the others."""
    path, manifest = sink.path, manifest_path(sink.path)
    half_written = (each.with_name(f"{each.name}.tmp") for each in (path, manifest))
    for leftover in (path.with_suffix(".deaths"), path.with_suffix(".current"), *half_written):
        leftover.unlink(missing_ok=True)
    try:
        sink.remove()
    except OutputError as error:
        if not isinstance(error.__cause__, FileNotFoundError):  # else another process has swept the empty folder
            raise


def _as_parquet(rows: Sequence[Mapping[str, Any]], plan: PartsPlan, index: int) -> bytes:
    failed = Counter(row["error"] for row in rows if row["status"] != "ok")
    content = {
        "plan": plan.id,
        "part": index,
        "ok": len(rows) - failed.total(),
        "failed": failed,
        "settings": dict(plan.manifest.settings),
    }
    buffer = pa.BufferOutputStream()
    pq.write_table(table(rows, {KEY: json.dumps(content).encode()}), buffer, compression="zstd")
    return bytes(buffer.getvalue().to_pybytes())


def _read_rows(path: Path) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, path.read_bytes().split(b"\n")[:-1])
    return {_key(row): row for row in rows}


def _key(row: Mapping[str, Any]) -> str:
    return row_key(row["file_name"], row["file_name_b64"], row.get("question"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
