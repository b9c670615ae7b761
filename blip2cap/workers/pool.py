"""The workers of a run, with the interface of an engine: requests in, rows out, in order.

The parent reads no image and loads no model. It gives out images a few at a time, when a worker has begun the last it
was given. A worker that dies, or is silent for long, is replaced, and its images are given out again; what it was
decoding is decoded in separate processes from then on.
"""

from __future__ import annotations

import os
import queue
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from blip2cap.decode.trace import Trace
from blip2cap.engine.read_ahead import SharedTrace
from blip2cap.engine.run import RunStats
from blip2cap.errors import Blip2CapError, ImageError, WorkerError
from blip2cap.records import ImageRef
from blip2cap.rows import Row
from blip2cap.tasks.base import Request
from blip2cap.workers.feed import End, Feed
from blip2cap.workers.ledger import Entry, Ledger
from blip2cap.workers.messages import (
    LAST,
    STOP,
    Alive,
    Broken,
    Idle,
    Item,
    Ready,
    Results,
    Said,
    Setup,
    Taken,
)
from blip2cap.workers.process import Gone, WorkerProcess

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
_SILENCE_S = 600.0
"""Longest time, in seconds, in which a worker with images says nothing: one step of the largest models on a slow CPU
takes minutes."""
_MOST_DEATHS = 3
"""Deaths in a row after which a place is given up."""
_MOST_DEATHS_BY_IMAGES = 20
"""The same where each time an image may be to blame, which is decoded in a separate process from then on."""
_WELL = 100
"""Images after which a worker's earlier deaths do not count any more."""
_NUMBERS = re.compile("[0-9]+")


class Place:
    """The place of one worker: a device, and the process that works there now."""

    def __init__(self, number: int, setup: Setup) -> None:
        self.number, self.setup = number, setup
        self.process: WorkerProcess | None = None
        """None before the first process, and after the last one."""
        self.num_deaths = 0
        """Processes in a row that died early."""
        self.given_up = False

    def __str__(self) -> str:
        return f"worker {self.number} ({self.setup.device})"


class WorkerPool:
    """Workers that make the rows of a run; to be closed.

    The first one is started at once, the others when its model is loaded: they find the weights in the page cache.
    """

    def __init__(
        self,
        setups: Sequence[Setup],
        *,
        environment: dict[str, str],
        on_failure: Callable[[ImageRef, ImageError], None],
        say: Callable[[str], None],
        silence_s: float = _SILENCE_S,
    ) -> None:
        self.on_failure, self._say_line = on_failure, say
        self.first: Ready | None = None
        """What the first worker with a loaded model has said."""
        self._task, self._environment, self._silence_s = setups[0].task, environment, silence_s
        self._places = [Place(number, setup) for number, setup in enumerate(setups, start=1)]
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._num_processes = 0
        self._said: set[str] = set()
        self._stream: _Stream | None = None
        """The requests that are being worked on; None before the first."""
        self._stopping = False

    def read_ahead(self, requests: Iterable[Request], trace: SharedTrace | None = None) -> Feed:
        """Start to read requests, and the first worker, if none has been started."""
        if trace is None:
            folder = tempfile.TemporaryDirectory(prefix="blip2cap-")
            trace = Trace(Path(folder.name) / "decoding")
            self._folder = folder  # removed with this object
        feed = Feed(requests, trace, self._events, _NUM_AHEAD)
        self._stream = _Stream(feed, self._stream.ledger.next_number if self._stream else 0)
        self._start_first()
        return feed

    def _start_first(self) -> None:
        if not self._num_processes:
            self._start(self._places[0])

    def wait(self) -> Ready:
        """Wait until the first model is loaded, and start the other workers. Raises Blip2CapError."""
        self._start_first()
        while self.first is None:
            self._handle(self._events.get())
            self._give()
        return self.first

    @property
    def num_workers(self) -> int:
        """Number of places that have not been given up."""
        return sum(not place.given_up for place in self._places)

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
            while not self._complete:
                if stopped() and not self._stopping:
                    self._stop()
                self._handle_all(_LOOK_S)
                if not self._stopping:
                    self._give()
                self._look_for_silent()
                now = time.monotonic()
                stats.seconds = now - started
                num_ready = stream.ledger.num_ready
                if num_ready and (num_ready >= _WRITE or self._all_made or now - left_at > _WRITE_S):
                    rows = self._leave(stream, stats)
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
        stream = self._stream
        assert stream is not None
        if self._stopping:
            return not any(process.given for process in self._running())
        return stream.exhausted and stream.ledger.all_done

    @property
    def _complete(self) -> bool:
        """True if all rows have left that will."""
        assert self._stream is not None
        return self._all_made and not self._stream.ledger.num_ready

    def _stop(self) -> None:
        self._stopping = True
        for process in self._running():
            process.send(STOP)

    def _leave(self, stream: _Stream, stats: RunStats) -> list[Row]:
        """Remove the images whose rows can leave, and return these."""
        rows: list[Row] = []
        num_images = 0
        for entry in stream.ledger.leave():
            assert entry.result is not None
            num_images += 1
            rows += [Row(self._task.schema, columns) for columns in entry.result.rows]
            for code, detail in entry.result.failures:
                self.on_failure(entry.request.ref, ImageError(code, detail))
            stream.feed.forget(entry.request.ref)
        stats.add(num_images, rows)
        for name in ("decode_s", "model_s"):
            setattr(stats, name, getattr(stats, name) + getattr(stream, name) / self.num_workers)
        stream.decode_s = stream.model_s = 0.0
        stats.batch_size, stats.capacity = stream.batch_size, stream.capacity
        return rows

    def _running(self) -> list[WorkerProcess]:
        return [place.process for place in self._places if place.process is not None]

    def _handle_all(self, patience_s: float) -> None:
        """Handle the events so far; wait for the first of them."""
        with suppress(queue.Empty):
            self._handle(self._events.get(timeout=patience_s))
            while True:
                self._handle(self._events.get_nowait())

    def _handle(self, event: tuple[Any, Any]) -> None:
        sender, message = event
        if isinstance(sender, Feed):
            if self._stream is not None and sender is self._stream.feed:
                self._stream.receive(message)
            return
        place = next((place for place in self._places if place.process is sender), None)
        if place is None:
            return  # the last words of a process that was replaced
        sender.heard_at = time.monotonic()
        match message:
            case Results():
                self._take(sender, place, message)
            case Taken():
                sender.num_lists -= 1
            case Ready():
                self._is_ready(sender, message)
            case Idle():
                if self._stopping:
                    sender.given.clear()  # it has dropped them
            case Said(line):
                self._say_once(line)
            case Broken(error, detail):
                self._broke(place, error, detail)
            case Gone():
                self._died(place, sender.how_it_ended())
            case Alive():
                pass

    def _take(self, process: WorkerProcess, place: Place, message: Results) -> None:
        stream = self._stream
        assert stream is not None
        for result in message.results:
            process.given.pop(result.number, None)
            stream.ledger.done(process.number, result)
        process.num_done += len(message.results)
        if process.num_done >= _WELL:
            place.num_deaths = 0
        stream.decode_s += message.decode_s
        stream.model_s += message.model_s
        stream.batch_size, stream.capacity = message.batch_size, message.capacity

    def _is_ready(self, process: WorkerProcess, ready: Ready) -> None:
        process.ready = ready
        if self.first is None:
            self.first = ready
            for place in self._places[1:]:
                # All texts of an output have one dtype.
                place.setup = replace(place.setup, dtype=ready.dtype)
                self._start(place)
            self._places[0].setup = replace(self._places[0].setup, dtype=ready.dtype)

    def _say_once(self, line: str) -> None:
        """Pass a worker's line on, unless another one has said it, with whatever numbers."""
        kind = _NUMBERS.sub("", line)
        if kind not in self._said:
            self._said.add(kind)
            self._say_line(line)

    def _give(self) -> None:
        """Give lists of images to all workers that have begun their last but one."""
        stream = self._stream
        if stream is None:
            return
        for process in self._running():
            # The first is given some while it loads: it decodes meanwhile.
            if process.ready is None and self.first is not None:
                continue
            while process.num_lists < _NUM_LISTS:
                entries = stream.ledger.give(process.number, _LIST)
                stream.feed.give_back(len(entries))
                if not entries and process.ready and stream.nothing_to_give and not process.num_lists:
                    entries = stream.ledger.give_oldest(process.number, _LIST) if not process.given else []
                if not entries:
                    break
                self._send(process, entries)
            if stream.exhausted and not stream.ledger.num_waiting and not process.told_last:
                process.told_last = True
                process.send(LAST)
        stream.ledger.held(sum(len(process.given) for process in self._running()))

    def _send(self, process: WorkerProcess, entries: list[Entry]) -> None:
        stream = self._stream
        assert stream is not None
        trace = stream.feed.trace
        items = [
            Item(
                entry.number,
                entry.request,
                trace.suspects(entry.request.ref),
                trace.slots_for(entry.request.ref, process.number),
            )
            for entry in entries
        ]
        if not process.given:
            process.heard_at = time.monotonic()
        process.given.update((entry.number, None) for entry in entries)
        process.num_lists += 1
        process.told_last = False
        process.send(items)

    def _look_for_silent(self) -> None:
        """Kill workers that have images and have said nothing for long; their end is an event like any other."""
        if not self._events.empty():
            return
        for process in self._running():
            if process.ready and process.given and time.monotonic() - process.heard_at > self._silence_s:
                self._say_line(f"a worker has been silent for {self._silence_s:g} s and is killed")
                process.heard_at = time.monotonic()
                process.kill()

    def _start(self, place: Place) -> None:
        """Start a process in a place. Raises WorkerError if the system starts none."""
        self._num_processes += 1
        try:
            place.process = WorkerProcess(
                place.setup, number=self._num_processes, environment=self._environment, events=self._events
            )
        except OSError as error:
            self._give_up(place, f"could not be started: {error.strerror or error}")

    def _broke(self, place: Place, error: Blip2CapError | None, detail: str) -> None:
        """Handle an error that ends a worker: raise what would end a run without workers too."""
        assert place.process is not None
        if error is None:
            self._died(place, f"failed: {detail}")
        elif place.process.ready is None and self.first is not None:
            self._release(place)
            self._give_up(place, f"cannot load the model: {detail}")
        else:
            raise error

    def _died(self, place: Place, how: str) -> None:
        """Give the images of a dead worker out again, and replace it, unless it is one death too many."""
        has_suspects = self._release(place)
        place.num_deaths += 1
        if place.num_deaths >= (_MOST_DEATHS_BY_IMAGES if has_suspects else _MOST_DEATHS) or self._stopping:
            self._give_up(place, f"{how}, after {place.num_deaths - 1} that died too")
        else:
            self._say_line(f"{place} {how}; its images are given to another")
            self._start(place)

    def _release(self, place: Place) -> bool:
        """Take the images back from a process that has ended; return True if one of them may have ended it."""
        process, stream = place.process, self._stream
        assert process is not None
        place.process = None
        process.close()
        if stream is None:
            return False
        stream.ledger.died(process.number, process.given.keys())
        return stream.feed.trace.crashed(process.number)

    def _give_up(self, place: Place, why: str) -> None:
        """Go on without a place. Raises WorkerError if it was the last."""
        place.given_up = True
        if self._stopping:
            return
        if not self.num_workers:
            raise WorkerError(
                f"{place} {why}. No worker is left. The rows so far are safe; run the same command again, with "
                "--workers 1 to see the error itself."
            )
        self._say_line(f"{place} {why}; the run goes on with {self.num_workers}")
        if self.first is None:  # no other has been started
            self._start(next(each for each in self._places if not each.given_up))

    def close(self) -> None:
        """End all workers; images in them are lost."""
        running = self._running()
        for process in running:
            process.kill()  # all at once, then wait for each
        for process in running:
            process.close()
        for place in self._places:
            place.process = None


class _Stream:
    """One stream of requests through the pool, and what is known of it."""

    def __init__(self, feed: Feed, first: int) -> None:
        self.feed, self.ledger = feed, Ledger(first)
        self.exhausted = False
        """True if no request follows."""
        self.error: BaseException | None = None
        """What the requests have raised; it is raised after the rows of those before."""
        self.decode_s = self.model_s = 0.0
        """Times of all workers since the last rows left."""
        self.batch_size = self.capacity = 0

    def receive(self, message: Request | End) -> None:
        """Take an event of the feed."""
        if isinstance(message, End):
            self.exhausted, self.error = True, message.error
        else:
            self.ledger.add(message)

    @property
    def nothing_to_give(self) -> bool:
        """True if only images that other workers have are left, or if these hold up all others."""
        return self.exhausted or self.ledger.num_waiting > 0


def environment_of(num_threads: int) -> dict[str, str]:
    """Return the variables of a worker that computes in this many threads."""
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(num_threads)}
