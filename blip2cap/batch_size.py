"""Number of images or texts processed at once: fixed, or doubled as long as that is faster."""

from __future__ import annotations

_WORTHWHILE = 1.05
"""Smallest gain in items per second for which a larger size is kept; smaller gains are noise and cost memory."""
_NUM_TRIALS = 2
"""Number of measurements of each size; the best counts, as the first includes warming up."""


class BatchSize:
    """A batch size with its measurements.

    Sizes whose batches take less than `quick_s` seconds are doubled without comparison: they are too short to be
    measured well.
    """

    def __init__(
        self, first: int, most: int | None = None, *, quick_s: float = 0.0, num_trials: int = _NUM_TRIALS
    ) -> None:
        self.size = first
        """Current size."""
        self.most = first if most is None else max(first, most)
        """Largest size."""
        self.fixed = most is None
        """True if the size was given, not measured."""
        self.settled = self.most == first
        """True if it does not grow any more."""
        self._largest = first
        self._quick_s, self._num_trials = quick_s, num_trials
        self._previous = 0.0
        self._rates: list[float] = []

    def settle(self) -> None:
        """Take the largest size without measuring; a given size stays."""
        if not self.settled:
            self.size = self._largest = self.most
            self.settled = True

    def measured(self, num_items: int, seconds: float) -> None:
        """Record the time of one batch; batches smaller than the current size do not count."""
        if self.settled or num_items < self.size:
            return
        if seconds < self._quick_s and self.size < self.most:
            self._largest, self.size = self.size, min(2 * self.size, self.most)
            self._previous, self._rates = 0.0, []
            return
        self._rates.append(num_items / max(seconds, 1e-9))
        if len(self._rates) < self._num_trials:
            return
        rate, self._rates = max(self._rates), []
        if rate < self._previous * _WORTHWHILE:
            self.size, self.settled = self._largest, True
        elif self.size >= self.most:
            self._largest, self.settled = self.size, True
        else:
            self._previous, self._largest = rate, self.size
            self.size = min(2 * self.size, self.most)

    def too_large(self, num_items: int) -> None:
        """Record an out-of-memory with this number of items: a measured size stays below it, a given one stays."""
        if not self.fixed:
            self.size, self.settled = min(self.size, max(1, num_items // 2)), True

    def restore(self) -> None:
        """Return to the largest good size, after an out-of-memory that a single item caused."""
        if not self.fixed:
            self.size = self._largest
