"""Measures the stages of a run: seconds and counts by name, cheap enough to be always on."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType


class Stopwatch:
    """Adds up the wall time of each stage, in one thread.

    Stages may be nested: the time of an inner stage is not part of the outer one, so that all stages add up to the
    total.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Time of each stage, in the order in which stages first ended."""
        self.counts: dict[str, int] = {}
        """Number of measurements of each stage."""
        self.wait: Callable[[], None] = lambda: None
        """Called before each reading of the clock; for a GPU, which computes asynchronously, it must wait for it."""
        self._inner = 0.0

    def measure(self, name: str) -> _Lap:
        """Measure a `with` block, even if it ends with an exception."""
        return _Lap(self, name)

    def reset(self) -> None:
        """Forget all measurements; keep `wait`."""
        self.seconds.clear()
        self.counts.clear()


class _Lap:
    """One measurement in progress."""

    __slots__ = ("_name", "_outer_sum", "_started", "_watch")

    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch = watch
        self._name = name
        self._outer_sum = self._started = 0.0

    def __enter__(self) -> None:
        watch = self._watch
        watch.wait()
        # `_inner` sums up the time of the laps inside this one; the outer lap's sum is restored at the end.
        self._outer_sum, watch._inner = watch._inner, 0.0
        self._started = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        watch, name = self._watch, self._name
        watch.wait()
        seconds = time.perf_counter() - self._started
        watch.seconds[name] = watch.seconds.get(name, 0.0) + seconds - watch._inner
        watch._inner = self._outer_sum + seconds
        watch.counts[name] = watch.counts.get(name, 0) + 1
