"""How much to do at once: as given, or doubled while it pays."""

from __future__ import annotations

_WORTHWHILE = 1.05
"""A larger size is kept if it does at least so many times as much a second: less is noise, and memory for nothing."""
_NUM_TRIALS = 2
"""Measurements of a size, of which the best counts: the first pays for warming up."""


class BatchSize:
    """A number of images or texts, and what was measured with it.

    Batches that take less than `quick_s` are doubled without asking whether it pays: they disturb nobody, and are too
    short to be measured well.
    """

    def __init__(
        self, first: int, most: int | None = None, *, quick_s: float = 0.0, num_trials: int = _NUM_TRIALS
    ) -> None:
        self.size = first
        """What to do at once now."""
        self.most = first if most is None else max(first, most)
        """Never more than this."""
        self.fixed = most is None
        """Whether it was given, not to be measured."""
        self.settled = self.most == first
        """Whether it will grow no more."""
        self._largest = first
        self._quick_s, self._num_trials = quick_s, num_trials
        self._previous = 0.0
        self._rates: list[float] = []

    def measured(self, num_items: int, seconds: float) -> None:
        """Note what one batch took; short ones say nothing."""
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
        """Note that so many had no room: a measured size stays below from now on, a given one is only a wish."""
        if not self.fixed:
            self.size, self.settled = min(self.size, max(1, num_items // 2)), True

    def restore(self) -> None:
        """Note that it was one item that had no room in any company: the size was not to blame."""
        if not self.fixed:
            self.size = self._largest
