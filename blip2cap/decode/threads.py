"""Threads that do jobs one after the other, and can do without one of them: a job that hangs is given up.

No thread can be ended from outside. One whose job takes too long is left behind with it, as a daemon, so that the
process can end without it; another takes its place.
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
"""How long jobs that run are waited for at the end."""


class Call(Generic[Result]):
    """One thing to do, and what came of it."""

    def __init__(self, do: Callable[[], Result]) -> None:
        self._do = do
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._result: Result | None = None
        self._error: BaseException | None = None
        self.waited_s = 0.0
        """How long it has been waited for since it began."""
        self.limits_itself = False
        """Whether it will come to its end in any case, however long it is waited for."""

    def wait(self, timeout_s: float) -> bool:
        """Whether it is done now, or within the time given."""
        return self._done.wait(timeout_s)

    def result(self) -> Result:
        """Return its result, or raise what it raised; it must be done."""
        assert self._done.is_set()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def run(self) -> None:
        """Do it, and keep what comes of it."""
        _current.job = self
        try:
            self.end(self._do(), None)
        except BaseException as error:
            self.end(None, error)
        finally:
            del _current.job

    def end(self, result: Result | None, error: BaseException | None) -> None:
        """Say what came of it; what comes later, from a thread that was given up, is not heard."""
        with self._lock:
            if not self._done.is_set():
                self._result, self._error = result, error
                self._done.set()


def limit_myself() -> None:
    """Called inside a job: from here on it sees to its time by itself. Outside of one it means nothing."""
    if (job := getattr(_current, "job", None)) is not None:
        job.limits_itself = True


class Threads(Generic[Result]):
    """Does jobs in a number of threads; to be closed."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Call[Result] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._running: dict[threading.Thread, Call[Result] | None] = {}
        """What each thread does; one that was given up is not here."""
        for _ in range(num_threads):
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._running[thread] = None
        thread.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while (job := self._jobs.get()) is not None and not self._closed.is_set():
            self._running[me] = job
            job.run()
            del job  # its pixels are not kept until the next one comes
            with self._lock:
                if me not in self._running:
                    return
                self._running[me] = None

    def submit(self, do: Callable[[], Result]) -> Call[Result]:
        """Have something done when its turn comes."""
        job = Call(do)
        self._jobs.put(job)
        return job

    def waited(self, seconds: float, limit_s: float, instead: Callable[[], Result]) -> None:
        """Note that somebody has waited in vain; a job that took longer than the limit gets another result instead.

        Only such time counts: none in which nobody minded, or the whole process was stopped.
        """
        for thread, job in [*self._running.items()]:
            if job is None or job.limits_itself:
                continue
            job.waited_s += seconds
            if job.waited_s >= limit_s:
                with self._lock:
                    if self._running[thread] is not job:
                        continue  # it has come to its end just now
                    del self._running[thread]
                job.end(instead(), None)
                self._start()

    def close(self) -> None:
        """Begin no more jobs, and wait for those that run; a thread that still hangs is left behind."""
        self._closed.set()
        threads = [*self._running]
        for _ in threads:
            self._jobs.put(None)
        deadline = time.monotonic() + _CLOSE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
