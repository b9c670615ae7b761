"""What a run needs of the place where its rows go."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any, Protocol

from blip2cap.records import Row


class Sink(Protocol):
    """Where rows go."""

    @property
    def finished(self) -> Container[str]:
        """Keys of rows that are already there."""

    @property
    def num_failed(self) -> int:
        """How many of those have failed."""

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Say with which settings the rows to come are made; called once, before the first write."""

    def write(self, rows: Iterable[Row]) -> None:
        """Write one batch; when this returns, it is safe."""

    def finish(self) -> None:
        """All is written that this run will write."""

    def close(self) -> None:
        """Let go of the output."""
