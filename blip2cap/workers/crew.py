"""The processes of a pool: starts them, replaces those that die or are silent, and gives up places where all die."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from blip2cap.errors import Blip2CapError, WorkerError
from blip2cap.workers.messages import LAST, Ready, Setup
from blip2cap.workers.process import WorkerProcess

SILENCE_S = 600.0
"""Longest time, in seconds, in which a worker with images says nothing: one step of the largest models on a slow CPU
takes minutes."""
_PAUSED_S = 5.0
"""Time, in seconds, between two looks at the workers after which this process must have been paused."""
_MOST_DEATHS = 3
"""Deaths in a row after which a place is given up."""
_MOST_DEATHS_BY_IMAGES = 20
"""The same where each time an image may be to blame, which is decoded in a separate process from then on."""
_WELL = 100
"""Images after which the earlier deaths in a place do not count any more."""


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


class Crew:
    """The worker processes of a pool; to be closed. What they send goes into `events`.

    `released` takes the images of a process back that has ended; with True, it returns whether one of them may have
    ended it.
    """

    def __init__(
        self,
        setups: Sequence[Setup],
        environment: Mapping[str, str],
        *,
        events: queue.SimpleQueue[Any],
        released: Callable[[WorkerProcess, bool], bool],
        say: Callable[[str], None],
        silence_s: float,
    ) -> None:
        self.first: Ready | None = None
        """Message of the first worker whose model was loaded; None before."""
        self.dismissed = False
        """True if processes that end are not replaced any more."""
        self._places = [Place(number, setup) for number, setup in enumerate(setups, start=1)]
        self._environment, self._events, self._released = environment, events, released
        self._say, self._silence_s = say, silence_s
        self._num_processes = 0
        self._looked_at = time.monotonic()

    @property
    def num_workers(self) -> int:
        """Number of places that have not been given up."""
        return sum(not place.given_up for place in self._places)

    def running(self) -> list[WorkerProcess]:
        """Return the processes that run."""
        return [place.process for place in self._places if place.process is not None]

    def place_of(self, process: WorkerProcess) -> Place | None:
        """Return the place of a process; None if it was replaced."""
        return next((place for place in self._places if place.process is process), None)

    def start_first(self, *, load: bool) -> None:
        """Start the first process, if none has been started; `load` its model before there are images."""
        if not self._num_processes:
            self._start(self._places[0], load=load)

    def ready(self, place: Place, ready: Ready) -> None:
        """Note that a model is loaded; if it is the first, start the other processes."""
        assert place.process is not None
        place.process.ready = ready
        if self.first is not None:
            return
        self.first = ready
        for each in self._places:
            each.setup = replace(each.setup, dtype=ready.dtype)  # all texts of an output have one dtype
            if each.process is None and not each.given_up and not self.dismissed:
                self._start(each, load=True)

    def works(self, place: Place, num_images: int) -> None:
        """Note that a process has made rows of this many images."""
        assert place.process is not None
        place.process.num_done += num_images
        if place.process.num_done >= _WELL:
            place.num_deaths = 0

    def broke(self, place: Place, error: Blip2CapError | None, detail: str) -> None:
        """Handle an error that ends a process: raise what would end a run without workers too."""
        assert place.process is not None
        if error is None:
            self.died(place, f"failed: {detail}", by_image=False)
        elif place.process.ready is None and self.first is not None:
            self._release(place, by_image=False)
            self._give_up(place, f"cannot load the model: {detail}")
        else:
            raise error

    def died(self, place: Place, how: str, *, by_image: bool = True) -> None:
        """Replace a process that has ended, unless it is one death too many. Raises WorkerError if none is left.

        `by_image`: an image that it was decoding may have ended it.
        """
        has_suspects = self._release(place, by_image=by_image)
        place.num_deaths += 1
        if self.dismissed or place.num_deaths >= (_MOST_DEATHS_BY_IMAGES if has_suspects else _MOST_DEATHS):
            before = place.num_deaths - 1
            self._give_up(place, f"{how}, after {before} that died too" if before else how)
        else:
            self._say(f"{place} {how}; its images are given to another")
            self._start(place, load=True)

    def kill_silent(self) -> None:
        """Kill workers that have images and have said nothing for long; their end is an event like any other.

        To be called about every second: time in which this process was paused does not count.
        """
        now = time.monotonic()
        paused_s, self._looked_at = max(0.0, now - self._looked_at - _PAUSED_S), now
        for process in self.running():
            process.heard_at += paused_s
            if process.ready and process.given and now - process.heard_at > self._silence_s:
                self._say(f"{self.place_of(process)} has been silent for {self._silence_s:g} s and is killed")
                process.heard_at = now
                process.kill()

    def _start(self, place: Place, *, load: bool) -> None:
        self._num_processes += 1
        try:
            place.process = WorkerProcess(
                place.setup, number=self._num_processes, environment=self._environment, events=self._events
            )
        except OSError as error:
            self._give_up(place, f"could not be started: {error.strerror or error}")
            return
        if load:
            place.process.send(LAST)

    def _release(self, place: Place, *, by_image: bool) -> bool:
        process = place.process
        assert process is not None
        place.process = None
        process.close()
        return self._released(process, by_image)

    def _give_up(self, place: Place, why: str) -> None:
        place.given_up = True
        if self.dismissed:
            return
        if not self.num_workers:
            raise WorkerError(
                f"{place} {why}. No worker is left. The rows so far are safe; run the same command again, with "
                "one process (--workers 1, or one GPU in --devices) to see the error itself."
            )
        self._say(f"{place} {why}; the run continues with {self.num_workers}")
        if self.first is None:  # no other has been started
            self._start(next(each for each in self._places if not each.given_up), load=True)

    def close(self) -> None:
        """End all processes; images in them are lost."""
        self.dismissed = True
        running = self.running()
        for process in running:
            process.kill()  # all at once, then wait for each
        for process in running:
            process.close()
        for place in self._places:
            place.process = None
