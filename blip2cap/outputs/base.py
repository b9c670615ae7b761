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

    def finish(self, *, stopped: bool) -> None:
        """All is written that this run will write; all that there is to do, unless it was `stopped` by a signal.

        Comes without begin() where nothing was left to do.
        """

    def close(self) -> None:
        """Let go of the output."""


class Output(Sink, Protocol):
    """A sink that a later run goes on with."""

    @property
    def made_with(self) -> Mapping[str, Any] | None:
        """The settings of the rows that are there, None if there are none."""

    def retry(self, asked: Container[str]) -> None:
        """Say which rows this run makes: of failed ones, only those are done again. Comes before begin()."""

    @property
    def torn_bytes(self) -> int:
        """Length of a torn last line, which `begin` cuts."""

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise OutputRefusedError if rows are there that were made with other settings."""
