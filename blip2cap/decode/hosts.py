"""The web servers and buckets that images come from: which answer, and when to end a run because none does."""

from __future__ import annotations

import threading
from collections import Counter

from blip2cap.errors import UnreachableError

NUM_IN_A_ROW = 20
"""Number of images in a row that could not be fetched, after which a host is down."""


class Hosts:
    """Counts images that could not be fetched. A host is `https://example.org` or `s3://bucket`.

    May be called from any number of threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: Counter[str] = Counter()
        """Number of failures since the last answer, by host."""
        self._in_a_row: Counter[str] = Counter()
        """Failures since the last answer of any host, by host."""
        self._some_that_answered: set[str] = set()
        """The first two hosts that answered: enough to know whether another one did."""

    def is_down(self, host: str) -> bool:
        """Return whether a host has failed so often that one attempt for each image is enough."""
        return self._failures[host] >= NUM_IN_A_ROW

    def answered(self, host: str) -> None:
        """Record an answer, even if it was not an image."""
        with self._lock:
            self._failures.pop(host, None)
            self._in_a_row.clear()
            if len(self._some_that_answered) < 2:
                self._some_that_answered.add(host)

    def failed(self, host: str, detail: str) -> None:
        """Record a failure. Raises UnreachableError if no host is left that could give images.

        That is so after `NUM_IN_A_ROW` failures without an answer between them, unless all are of one host and another
        one has answered before: lists of many hosts hold some that are gone.
        """
        with self._lock:
            self._failures[host] += 1
            self._in_a_row[host] += 1
            if self._in_a_row.total() < NUM_IN_A_ROW:
                return
            if len(self._in_a_row) == 1 and self._some_that_answered - {host}:
                return
            name = host if len(self._in_a_row) == 1 else f"{host} and {len(self._in_a_row) - 1} more"
            self._in_a_row.clear()
        raise UnreachableError(
            f"{name}: cannot be reached, {NUM_IN_A_ROW} images in a row failed; the last: {detail}. The rows so far "
            "are safe. When the network and the server work, run the same command again; --retry-only unreachable "
            "retries these images too."
        )


HOSTS = Hosts()
"""The hosts of this process."""
