"""The workers of a run, with the interface of an engine: requests in, rows out, in order.

The parent reads no image and loads no model. It gives out images a few at a time, when a worker has begun the last it
was given. A worker that dies, or is silent for long, is replaced, and its images are given out again; what it was
decoding is decoded in separate processes from then on.
"""

from __future__ import annotations

import queue
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from blip2cap.decode.trace import Trace
from blip2cap.engine.read_ahead import SharedTrace
from blip2cap.engine.run import RunStats
from blip2cap.errors import Blip2CapError, ImageError
from blip2cap.records import ImageRef
from blip2cap.rows import Row
from blip2cap.tasks.base import Request
from blip2cap.workers.crew import SILENCE_S, Crew
from blip2cap.workers.feed import Feed
from blip2cap.workers.ledger import Entry
from blip2cap.workers.messages import LAST, STOP, Broken, Idle, Item, Ready, Results, Said, Setup, Taken
from blip2cap.workers.process import Gone, WorkerProcess
from blip2cap.workers.stream import Stream

_LIST = 16
"""Most images in one list for a worker."""
_NUM_LISTS = 2
"""Lists that a worker has and has not begun: it never waits for the parent."""
_NUM_AHEAD = 16 * _LIST
"""Images that are known and not given out."""
_WRITE = 64
"""Number of images whose rows leave at once."""
_WRITE_S = 0.5
"""Longest time, in seconds, that rows wait to leave with others."""
_LOOK_S = 0.1
_NUMBERS = re.compile("[0-9]+")


class WorkerPool:
    """Workers that make the rows of a run; to be closed.

    The first one is started at once, the others when its model is loaded: they find the weights in the page cache.
    """

    def __init__(
        self,
        setups: Sequence[Setup],
        *,
        environment: Mapping[str, str],
        on_failure: Callable[[ImageRef, ImageError], None],
        say: Callable[[str], None],
        silence_s: float = SILENCE_S,
    ) -> None:
        self.on_failure, self._say = on_failure, say
        self._task = setups[0].task
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._crew = Crew(
            setups, environment, events=self._events, released=self._take_back, say=say, silence_s=silence_s
        )
        self._stream: Stream | None = None
        """The requests that are being worked on; None before the first."""
        self._said: set[str] = set()
        self._stopping = False
        self._to_close = ExitStack()

    def read_ahead(self, requests: Iterable[Request], trace: SharedTrace | None = None) -> Feed:
        """Start to read requests, and the first worker, if none has been started."""
        if trace is None:
            folder = self._to_close.enter_context(tempfile.TemporaryDirectory(prefix="blip2cap-"))
            trace = self._to_close.enter_context(closing(Trace(Path(folder) / "decoding")))
        feed = Feed(requests, trace, self._events, _NUM_AHEAD)
        self._stream = Stream(feed, self._stream.ledger.next_number if self._stream else 0)
        self._crew.start_first(load=False)  # it decodes first
        return feed

    def wait(self, *, for_all: bool = False) -> Ready:
        """Wait until the first model is loaded, or all are; the others are started then. Raises Blip2CapError."""
        self._crew.start_first(load=True)
        while self._crew.first is None or (for_all and not all(process.ready for process in self._crew.running())):
            self._handle(self._events.get())
            self._give()
        return self._crew.first

    def row_batches(
        self, images: Feed, stats: RunStats, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[list[Row]]:
        """Yield rows in the order of the requests; counts and times go to `stats`. Closes `images`.

        Once `stopped` returns True, images in the models are completed, and the rows up to the first missing one
        leave. Raises WorkerError if no worker is left.
        """
        stream = self._stream
        assert stream is not None
        assert stream.feed is images
        with closing(images):
            started = left_at = time.monotonic()
            while not (self._all_made and not stream.ledger.num_ready):
                if stopped() and not self._stopping:
                    self._stop()
                try:
                    self._handle_all()
                except Blip2CapError:
                    if stream.ledger.num_ready:  # nothing complete is lost
                        yield stream.leave(self._task.schema, stats, self.on_failure)
                    raise
                self._crew.kill_silent()
                self._give()
                now = time.monotonic()
                stats.seconds = now - started
                num_ready = stream.ledger.num_ready
                if num_ready and (num_ready >= _WRITE or self._all_made or now - left_at > _WRITE_S):
                    rows = stream.leave(self._task.schema, stats, self.on_failure)
                    try:
                        yield rows
                    finally:
                        left_at = time.monotonic()
                        stats.write_s += left_at - now
                        stats.seconds = left_at - started
        if stream.error is not None and not self._stopping:
            raise stream.error

    @property
    def _all_made(self) -> bool:
        """True if no more rows will be made."""
        if self._stopping:
            return not any(process.given for process in self._crew.running())
        return self._stream is not None and self._stream.exhausted and self._stream.ledger.all_done

    def _stop(self) -> None:
        self._stopping = self._crew.dismissed = True
        for process in self._crew.running():
            process.send(STOP)

    def _handle_all(self) -> None:
        """Handle the events so far; wait a moment for the first of them."""
        with suppress(queue.Empty):
            self._handle(self._events.get(timeout=_LOOK_S))
            while True:
                self._handle(self._events.get_nowait())

    def _handle(self, event: tuple[Any, Any]) -> None:
        sender, message = event
        stream = self._stream
        if isinstance(sender, Feed):
            if stream is not None and sender is stream.feed:
                stream.receive(message)
            return
        place = self._crew.place_of(sender)
        if place is None:
            return  # the last words of a process that was replaced
        sender.heard_at = time.monotonic()
        match message:
            case Results():
                assert stream is not None
                for result in message.results:
                    sender.given.pop(result.number, None)
                stream.take(message)
                self._crew.works(place, len(message.results))
            case Taken():
                sender.num_lists -= 1
            case Ready():
                self._crew.ready(place, message)
            case Idle():
                if self._stopping:
                    sender.given.clear()  # it has dropped them
            case Said(line):
                self._say_once(line)
            case Broken(error, detail):
                self._crew.broke(place, error, detail)
            case Gone():
                self._crew.died(place, sender.how_it_ended())

    def _say_once(self, line: str) -> None:
        """Pass a worker's line on, unless another one has said it, with whatever numbers."""
        kind = _NUMBERS.sub("", line)
        if kind not in self._said:
            self._said.add(kind)
            self._say(line)

    def _give(self) -> None:
        """Give lists of images to all workers that have begun their last but one."""
        stream = self._stream
        if stream is None or self._stopping:
            return
        for process in self._crew.running():
            # The first is given some while it loads: it decodes meanwhile.
            if process.ready is None and self._crew.first is not None:
                continue
            while process.num_lists < _NUM_LISTS:
                entries = stream.give(process.number, _LIST)
                if not entries and process.ready and not process.given and stream.nothing_to_give:
                    entries = stream.ledger.give_oldest(process.number, _LIST)
                if not entries:
                    break
                self._send(process, entries, stream.feed.trace)
            if stream.exhausted and not stream.ledger.num_waiting and not process.told_last:
                process.told_last = True
                process.send(LAST)
        stream.ledger.held(sum(len(process.given) for process in self._crew.running()))

    def _send(self, process: WorkerProcess, entries: Sequence[Entry], trace: SharedTrace) -> None:
        items = []
        for entry in entries:
            ref = entry.request.ref
            slots = trace.slots_for(ref, process.number)
            items.append(Item(entry.number, entry.request, trace.suspects(ref), slots))
        if not process.given:
            process.heard_at = time.monotonic()
        process.given.update((item.number, None) for item in items)
        process.num_lists += 1
        process.told_last = False
        process.send(items)

    def _take_back(self, process: WorkerProcess, by_image: bool) -> bool:
        """Give the images of a process that has ended out again; return True if one of them may have ended it."""
        if self._stream is None:
            return False
        self._stream.ledger.died(process.number, process.given.keys())
        return by_image and self._stream.feed.trace.crashed(process.number)

    def close(self) -> None:
        """End all workers; images in them are lost."""
        self._crew.close()
        self._to_close.close()
