"""The images of a run, the workers that have them, and the rows that are complete: bookkeeping without processes.

Images are numbered as they come. They are given out in that order, a list at a time; those of a worker that died are
given out again first. Rows leave in order, so a slow worker could hold up the others: a worker without new images gets
the oldest of theirs too, and the first result counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from blip2cap.tasks.base import Request
from blip2cap.workers.messages import Result

_LEAST_AHEAD = 1024
_AHEAD = 2
"""Largest distance from the oldest unfinished image to one given out, as a multiple of the images in all workers."""


@dataclass(slots=True, eq=False)
class Entry:
    """One image of the run."""

    number: int
    request: Request
    workers: set[int] = field(default_factory=set)
    """Numbers of the processes that have it."""
    result: Result | None = None


class Ledger:
    """The images that have come and whose rows have not left."""

    def __init__(self, first_number: int = 0) -> None:
        self.next_number = first_number
        """Number of the next image."""
        self._entries: deque[Entry] = deque()
        """By number; the first is the oldest image whose rows have not left."""
        self._new: deque[Entry] = deque()
        """Images that no worker has."""
        self._again: list[Entry] = []
        """Images of workers that died."""
        self._num_missing = 0
        self._most_held = 0
        """Largest number of images that all workers had together."""

    @property
    def num_new(self) -> int:
        """Number of images that no worker has had."""
        return len(self._new)

    @property
    def num_waiting(self) -> int:
        """Number of images that no worker has."""
        return len(self._new) + len(self._again)

    @property
    def all_done(self) -> bool:
        """True if all images have results."""
        return not self._num_missing

    @property
    def num_ready(self) -> int:
        """Number of images whose rows can leave."""
        return next((n for n, entry in enumerate(self._entries) if entry.result is None), len(self._entries))

    def add(self, request: Request) -> None:
        """Add an image that has come."""
        entry = Entry(self.next_number, request)
        self.next_number += 1
        self._entries.append(entry)
        self._new.append(entry)
        self._num_missing += 1

    def give(self, worker: int, most: int) -> list[Entry]:
        """Return up to `most` images that no worker has, and note that this one has them."""
        given: list[Entry] = []
        while len(given) < most and self._again:
            given.append(self._again.pop(0))
        first = self._entries[0].number if self._entries else 0
        while len(given) < most and self._new and self._new[0].number - first < self._most_ahead:
            given.append(self._new.popleft())
        for entry in given:
            entry.workers.add(worker)
        return given

    @property
    def _most_ahead(self) -> int:
        return max(_LEAST_AHEAD, _AHEAD * self._most_held)

    def held(self, num_images: int) -> None:
        """Note how many images all workers have together."""
        self._most_held = max(self._most_held, num_images)

    def give_oldest(self, worker: int, most: int) -> list[Entry]:
        """Return up to `most` of the oldest unfinished images of one other worker each, for this one too."""
        given: list[Entry] = []
        for entry in self._entries:
            if len(given) == most:
                break
            if entry.result is None and len(entry.workers) == 1 and worker not in entry.workers:
                entry.workers.add(worker)
                given.append(entry)
        return given

    def done(self, result: Result) -> bool:
        """Take a result; return False if there was one already."""
        entry = self._entry(result.number)
        if entry is None or entry.result is not None:
            return False
        entry.result = result
        self._num_missing -= 1
        return True

    def _entry(self, number: int) -> Entry | None:
        """Return an image by its number; None if its rows have left."""
        index = number - self._entries[0].number if self._entries else -1
        return self._entries[index] if index >= 0 else None

    def died(self, worker: int, numbers: Collection[int]) -> None:
        """Give out again what only this worker had."""
        for number in numbers:
            entry = self._entry(number)
            if entry is not None and entry.result is None:
                entry.workers.discard(worker)
                if not entry.workers:
                    self._again.append(entry)
        self._again.sort(key=lambda entry: entry.number)

    def leave(self) -> Iterator[Entry]:
        """Remove and yield the oldest images as long as they have results."""
        while self._entries and self._entries[0].result is not None:
            yield self._entries.popleft()
