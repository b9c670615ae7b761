"""The time that a benchmark may take, and how it is spent."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """A time limit; stages ask whether they fit before they start."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.minutes = minutes
        self._clock = clock
        self._ends = clock() + 60 * minutes

    @property
    def left_s(self) -> float:
        """Seconds until the limit; less than 0 after it."""
        return self._ends - self._clock()

    @property
    def why(self) -> str:
        """Reason for a stage that is cut short or skipped."""
        return f"to stay within {self.minutes:g} minutes (--max-minutes)"


def duration(seconds: float) -> str:
    """Write a time in the largest unit of which there are two or more: 3 s, 50 min, 21 hours, 12 days."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("min", 60.0)):
        if seconds >= 1.95 * length:
            count = seconds / length
            return f"{count:.0f} {unit}" if count >= 9.5 else f"{count:.2g} {unit}"
    return f"{seconds:.0f} s" if seconds >= 0.95 else f"{seconds:.1g} s"
