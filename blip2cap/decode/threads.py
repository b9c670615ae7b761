"""A pool of threads that abandons calls that hang.

A thread cannot be ended from outside. One whose call takes too long is abandoned, and a new thread replaces it; threads
are daemons, so that the process can exit without them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")

_current = threading.local()
_CLOSE_S = 2.0
"""Longest time, in seconds, that close() waits for running calls."""


class Call(Generic[Result]):
    """A function to call, and its result or exception."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._result: Result | None = None
        self._error: BaseException | None = None
        self.waited_s = 0.0
        """Seconds that others have waited for it since it started."""
        self.limits_itself = False
        """True if it has a time limit of its own, so that it must not be abandoned."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for the call to finish; return whether it has."""
        return self._done.wait(timeout_s)

    def result(self) -> Result:
        """Return the result, or raise the exception; the call must have finished."""
        assert self._done.is_set()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def run(self) -> None:
        """Call the function, and store its result or exception."""
        _current.call = self
        try:
            self.finish(self._function(), None)
        except BaseException as error:
            self.finish(None, error)
        finally:
            del _current.call

    def finish(self, result: Result | None, error: BaseException | None) -> None:
        """Set the outcome, unless it is already set: a late one from an abandoned thread is ignored."""
        with self._lock:
            if not self._done.is_set():
                self._result, self._error = result, error
                self._done.set()


def limit_myself() -> None:
    """Declare that the call in this thread now has a time limit of its own; without effect in other threads."""
    if (call := getattr(_current, "call", None)) is not None:
        call.limits_itself = True


class Threads(Generic[Result]):
    """Runs calls in a number of threads; to be closed."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Call[Result] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._running: dict[threading.Thread, Call[Result] | None] = {}
        """Thread -> its current call; without abandoned threads."""
        for _ in range(num_threads):
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._running[thread] = None
        thread.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while (call := self._calls.get()) is not None and not self._closed.is_set():
            self._running[me] = call
            call.run()
            del call  # its pixels must not stay in memory until the next call
            with self._lock:
                if me not in self._running:
                    return
                self._running[me] = None

    def submit(self, function: Callable[[], Result]) -> Call[Result]:
        """Queue a call."""
        call = Call(function)
        self._calls.put(call)
        return call

    def waited(self, seconds: float, limit_s: float, instead: Callable[[], Result]) -> None:
        """Add waiting time to all running calls; abandon those that exceed the limit, with the result of `instead`.

        Only waiting time counts: not the time in which no result was needed, or the whole process was paused.
        """
        for thread, call in [*self._running.items()]:
            if call is None or call.limits_itself:
                continue
            call.waited_s += seconds
            if call.waited_s >= limit_s:
                with self._lock:
                    if self._running[thread] is not call:
                        continue  # it has finished in the meantime
                    del self._running[thread]
                call.finish(instead(), None)
                self._start()

    def close(self) -> None:
        """Start no more calls, and wait for the running ones; threads that hang are abandoned."""
        self._closed.set()
        threads = [*self._running]
        for _ in threads:
            self._calls.put(None)
        deadline = time.monotonic() + _CLOSE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
