"""Rows -> an open stream, usually standard output."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from typing import Any, BinaryIO

from blip2cap.errors import OutputError
from blip2cap.rows import Row


class StreamSink:
    """Writes rows to an open stream, flushed after every batch; nothing is remembered, so no rows exist before."""

    finished: frozenset[str] = frozenset()
    num_failed = 0
    first_key = ""
    failed_keys: frozenset[str] = frozenset()
    made_with = None
    torn_bytes = 0

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def check(self, settings: Mapping[str, Any]) -> None:
        """Do nothing: no rows exist that could differ."""

    def retry(self, asked: Container[str], only: Collection[str] = ()) -> None:
        """Do nothing: no rows exist that could have failed."""

    def move(self, root: str) -> None:
        """Do nothing: no rows exist."""

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Do nothing: there is nothing to prepare."""

    def write(self, rows: Iterable[Row]) -> None:
        """Write and flush. BrokenPipeError passes through: it ends the run silently, as the reader is gone."""
        try:
            view = memoryview(b"".join(row.as_json() for row in rows))
            while view:  # with PYTHONUNBUFFERED, a signal may interrupt a write in the middle
                view = view[self.stream.write(view) :]
            self.stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"standard output cannot be written: {error}.") from error

    def finish(self, *, stopped: bool = False) -> None:
        """Do nothing: a stream has no manifest."""

    def close(self) -> None:
        """Do nothing: the stream belongs to the caller."""
