"""Messages between the driver, which schedules parts, and the actors, which make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from blip2cap.errors import Blip2CapError

if TYPE_CHECKING:
    from blip2cap.engine.run import RunStats
    from blip2cap.jobs.job import Job
    from blip2cap.jobs.parts import PartResult
    from blip2cap.models.base import Checkpoint
    from blip2cap.records import ImageRef


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The job of all actors: what every one of them loads and checks before its first part."""

    job: Job
    """The job, with absolute paths and the dtype of the plan."""
    checkpoint: Checkpoint
    """The checkpoint that the driver has found; its name and commit must be those of the node's."""
    folder: str | None
    """Current folder of the driver, which relative paths in the plan start from; None if no input is relative."""
    plan_id: str
    sample: ImageRef | None
    """An image whose folder every node must see; None for images that are not local files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """One part for one actor."""

    index: int
    again: bool = False
    """True: the failed rows of an existing part are retried."""
    isolate: bool = False
    """True: an earlier actor died over this part, so its images are decoded in separate processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Report of an actor while it makes a part."""

    stats: RunStats
    """Counts of the current part."""
    failures: Sequence[tuple[str, str, str]]
    """Name, error and detail of each image that has failed since the last report."""
    lines: Sequence[str]
    """Messages since the last report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that has happened to an actor."""

    actor: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed(Event):
    """The process of the actor runs; the model is not loaded yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready(Event):
    """The actor has loaded the model and waits for a part."""

    line: str
    """Name, dtype and device of the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused(Event):
    """The actor cannot work where it is: something is missing on its node."""

    error: Blip2CapError


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported(Event):
    """Progress of the part that the actor makes."""

    progress: Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Made(Event):
    """The actor has made its part, or has stopped because it was told to."""

    result: PartResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed(Event):
    """An error that no other actor would be spared, such as a full disk."""

    node: str
    error: Blip2CapError


@dataclass(frozen=True, kw_only=True, slots=True)
class Died(Event):
    """The process of the actor has ended, or Python raised an error in it that is a bug."""

    report: str
    """Cause, and the last lines that it wrote to stderr."""
    node_lost: bool
    """True if its node has gone too."""


class Pool(Protocol):
    """The actors of a cluster; a fake in tests."""

    grows: bool
    """True if nodes may be added to the cluster."""

    def num_free(self) -> int:
        """Return how many actors the free resources of the cluster are enough for."""

    def start(self) -> int:
        """Ask for one more actor; return its number."""

    def assign(self, actor: int, assignment: Assignment) -> None:
        """Let a ready actor make a part."""

    def stop(self, actor: int) -> None:
        """Tell an actor to stop after its current batch."""

    def kill(self, actor: int) -> None:
        """End the process of an actor."""

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Return what has happened since the last call; wait for the first event, at most this long."""

    def describe(self) -> str:
        """Return what the cluster has, what is free, and what an actor needs."""
