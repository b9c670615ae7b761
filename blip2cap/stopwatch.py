"""How long each stage of a run takes: seconds and counts by name, cheap enough to be always on."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType


class Stopwatch:
    """Adds up the wall time spent under each name; for one thread.

    Stages may be nested: the time of the inner one is not in the outer one, so that all together are the whole.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """By name, in the order of the first measurement that ended."""
        self.counts: dict[str, int] = {}
        """How many times each was measured."""
        self.wait: Callable[[], None] = _nothing
        """Called before each reading of the clock; on a GPU, which works behind the program's back, wait for it."""
        self._inner = 0.0

    def measure(self, name: str) -> _Lap:
        """Measure a `with` block, also one that ends with an exception."""
        return _Lap(self, name)

    def reset(self) -> None:
        """Forget everything measured; `wait` stays."""
        self.seconds.clear()
        self.counts.clear()


class _Lap:
    """One measurement under way."""

    __slots__ = ("_beside", "_name", "_started", "_watch")

    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch = watch
        self._name = name
        self._beside = self._started = 0.0

    def __enter__(self) -> None:
        watch = self._watch
        watch.wait()
        # What the laps inside this one take adds up in `_inner`; what those before it took beside it is put back after.
        self._beside, watch._inner = watch._inner, 0.0
        self._started = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        watch, name = self._watch, self._name
        watch.wait()
        seconds = time.perf_counter() - self._started
        watch.seconds[name] = watch.seconds.get(name, 0.0) + seconds - watch._inner
        watch._inner = self._beside + seconds
        watch.counts[name] = watch.counts.get(name, 0) + 1


def _nothing() -> None:
    """On a CPU every call has done its work when it returns."""
