"""One stream of requests through a pool: what comes in, who has it, and the rows that leave."""

from __future__ import annotations

from collections.abc import Callable

from blip2cap.engine.run import RunStats
from blip2cap.errors import ImageError
from blip2cap.records import ImageRef
from blip2cap.rows import Row, Schema
from blip2cap.tasks.base import Request
from blip2cap.workers.feed import End, Feed
from blip2cap.workers.ledger import Entry, Ledger
from blip2cap.workers.messages import Results


class Stream:
    """Requests between the feed that reads them and the output that takes their rows."""

    def __init__(self, feed: Feed, first_number: int) -> None:
        self.feed, self.ledger = feed, Ledger(first_number)
        self.exhausted = False
        """True if no request follows."""
        self.error: BaseException | None = None
        """What the requests have raised; it is raised after the rows of those before."""
        self._decode_s = self._model_s = 0.0
        """Times of all workers since the last rows left."""
        self._batch_size = self._capacity = 0

    @property
    def nothing_to_give(self) -> bool:
        """True if a worker without images can only be given some that others have: no other is left, or none may be
        given out before these are finished.
        """
        return self.exhausted or self.ledger.num_waiting > 0

    def receive(self, message: Request | End) -> None:
        """Take an event of the feed."""
        if isinstance(message, End):
            self.exhausted, self.error = True, message.error
        else:
            self.ledger.add(message)

    def give(self, worker: int, most: int) -> list[Entry]:
        """Return up to `most` images that no worker has, and note that this one has them."""
        before = self.ledger.num_new
        entries = self.ledger.give(worker, most)
        self.feed.give_back(before - self.ledger.num_new)
        return entries

    def take(self, message: Results) -> None:
        """Take the results of a worker."""
        for result in message.results:
            self.ledger.done(result)
        self._decode_s += message.decode_s
        self._model_s += message.model_s
        self._batch_size, self._capacity = message.batch_size, message.capacity

    def leave(self, schema: Schema, stats: RunStats, on_failure: Callable[[ImageRef, ImageError], None]) -> list[Row]:
        """Remove the images whose rows can leave, and return these; times are sums over all workers."""
        rows: list[Row] = []
        num_images = 0
        for entry in self.ledger.leave():
            assert entry.result is not None
            num_images += 1
            rows += [Row(schema, columns) for columns in entry.result.rows]
            for code, detail in entry.result.failures:
                on_failure(entry.request.ref, ImageError(code, detail))
            self.feed.forget(entry.request.ref)
        stats.add(num_images, rows)
        stats.decode_s += self._decode_s
        stats.model_s += self._model_s
        self._decode_s = self._model_s = 0.0
        stats.batch_size, stats.capacity = self._batch_size, self._capacity
        return rows
