"""The interface of an output, as a run uses it."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from typing import Any, Protocol

from blip2cap.key_set import KeySet
from blip2cap.rows import Row


class RowSink(Protocol):
    """Takes the rows of a run."""

    def write(self, rows: Iterable[Row]) -> None:
        """Write one batch; when this returns, it is safe."""

    def finish(self, *, stopped: bool) -> None:
        """Complete the output after the last row, unless the run was `stopped`."""


class Output(RowSink, Protocol):
    """The sink of one run, to be closed; a later run can resume it, unless it is a stream."""

    @property
    def finished(self) -> KeySet | frozenset[str]:
        """Keys of the existing rows."""

    @property
    def num_failed(self) -> int:
        """Number of existing failed rows, without those that are retried."""

    @property
    def failed_keys(self) -> KeySet | frozenset[str]:
        """Keys of the existing failed rows, also of those that are retried."""

    @property
    def first_key(self) -> str:
        """Key of the first existing row, "" without rows."""

    @property
    def made_with(self) -> Mapping[str, Any] | None:
        """Settings of the existing rows; None without rows."""

    @property
    def torn_bytes(self) -> int:
        """Length of a torn last line, which `begin` truncates."""

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise OutputRefusedError if existing rows were made with other settings."""

    def retry(self, asked: Container[str], only: Collection[str] = ()) -> None:
        """Retry only the failed rows with these keys and, if `only` is given, these errors; comes before begin().

        Without a call, all are retried.
        """

    def move(self, root: str) -> None:
        """Change the root of the inputs in the settings of existing rows: their folder was renamed."""

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Set the settings of the new rows; called once, before the first write."""

    def close(self) -> None:
        """Release the output."""
