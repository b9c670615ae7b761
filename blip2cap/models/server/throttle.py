"""Number of requests in flight: more while that is faster, half as many if the server cannot keep up, none in a pause.

After congestion control in TCP (RFC 5681): a start that doubles, then additive increase, multiplicative decrease; and
an increase that brings no more answers per second is taken back.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

_FIRST = 4
_NUM_STEPS = 4
"""Number of increases from nothing to the most."""
_SHORTEST_S = 0.1
"""Shortest time, in seconds, over which answers are counted: less says nothing."""
_PART_OF_BEST = 0.2
"""An increase stays if it brings at least this part of what it could at best: of twice as many requests 20 %."""
_NUM_QUIET = 4
"""Number of measurements without an increase, after one that was taken back."""
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.5, 30.0
"""Pauses where the server does not say how long; each is twice the last, until there is an answer."""


class Concurrency:
    """The best number of requests in flight so far, from 1 to `most`."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.clock = most, clock
        self.size = min(_FIRST, most)
        """Number of requests that may be in flight now."""
        self._step = max(1, most // _NUM_STEPS)
        self._doubles = True
        """True until the first time that more is not better: the size is doubled until then."""
        self._before, self._rate_before = self.size, 0.0
        """Size before the last increase, and answers per second with it."""
        self._num_quiet = 0
        self._start()

    def _start(self) -> None:
        self._num_answers, self._started = 0, self.clock()

    def answered(self) -> None:
        """Count an answer; after enough of them, change the size."""
        self._num_answers += 1
        seconds = self.clock() - self._started
        if self._num_answers < 2 * self.size or seconds < _SHORTEST_S:
            return
        rate = self._num_answers / seconds
        if self.size > self._before:
            gain = self.size / self._before - 1
            if rate < self._rate_before * (1 + _PART_OF_BEST * gain):
                self.size, self._num_quiet, self._doubles = self._before, _NUM_QUIET, False
                self._start()
                return
        self._before, self._rate_before = self.size, rate
        if self._num_quiet:
            self._num_quiet -= 1
        else:
            self.size = min(self.most, self.size + (self.size if self._doubles else self._step))
        self._start()

    def halve(self) -> None:
        """Halve the size: the server cannot keep up."""
        self.size = self._before = max(1, self.size // 2)
        self._doubles = False
        self._start()


class Throttle:
    """Lets requests begin, the oldest first, and none during a pause. Used in the thread of the event loop only."""

    def __init__(self, most: int) -> None:
        self.concurrency = Concurrency(most)
        self.failing_since: float | None = None
        """Time of the first back-off since the last answer; None if there was none."""
        self._num_in_flight = self._num_pauses = 0
        self.num_answers = 0
        """Number of answers so far."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._resume_at = self._backed_off = 0.0

    async def enter(self, *, again: bool = False) -> float:
        """Wait until a request may begin; return the time. One that is sent `again` goes first: rows wait for it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if again:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        self._wake()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was let in just then
                self.leave()
            raise
        return time.monotonic()

    def leave(self) -> None:
        """Record that a request has ended."""
        self._num_in_flight -= 1
        self._wake()

    def answered(self) -> None:
        """Record an answer."""
        self.num_answers += 1
        self.failing_since, self._num_pauses = None, 0
        self.concurrency.answered()

    def slow(self, began: float) -> None:
        """Record that a request, begun at this time, had no answer in time."""
        if began >= self._backed_off:  # later ones were sent with the smaller number
            self._backed_off = time.monotonic()
            self.concurrency.halve()

    def pause(self, began: float, seconds: float) -> float:
        """Record that a request, begun at this time, was turned away, and begin none for `seconds` or longer.

        Returns the seconds since the last answer at the end of the pause.
        """
        now = time.monotonic()
        if self.failing_since is None:
            self.failing_since = now
        if began >= self._backed_off:
            self.slow(began)
            self._num_pauses += 1
        own = min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._num_pauses - 1))
        resume_at = now + (seconds or own)
        if resume_at > self._resume_at:
            self._resume_at = resume_at
            asyncio.get_running_loop().call_later(resume_at - now + 0.001, self._wake)
        return self._resume_at - self.failing_since

    def reset(self) -> None:
        """Forget failures and pauses, at the end of a run: the next one may find another server."""
        self.failing_since, self._num_pauses, self._resume_at = None, 0, 0.0

    def _wake(self) -> None:
        while self._waiting and self._num_in_flight < self.concurrency.size and time.monotonic() >= self._resume_at:
            turn = self._waiting.popleft()
            if not turn.done():  # cancelled, as the run has ended
                self._num_in_flight += 1
                turn.set_result(None)
