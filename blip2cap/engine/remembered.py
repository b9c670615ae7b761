"""Results of pictures that may come again: the last ones, of limited number and size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

_NUM_RESULTS = 20_000
"""About 10 MB of captions."""
_NUM_BYTES = 64_000_000
"""Size of all arrays: 650 images with 32 vectors of 768 numbers."""


class Remembered:
    """Results by key; the one that was not used for the longest time is forgotten first."""

    def __init__(self, *, num_results: int = _NUM_RESULTS, num_bytes: int = _NUM_BYTES) -> None:
        self.num_results, self.num_bytes = num_results, num_bytes
        self._results: OrderedDict[Hashable, Any] = OrderedDict()
        self._num_used = 0

    def __len__(self) -> int:
        return len(self._results)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._results

    def __getitem__(self, key: Hashable) -> Any:
        self._results.move_to_end(key)
        return self._results[key]

    def add(self, key: Hashable, result: Any) -> None:
        """Remember the result of a new key; arrays count by their `nbytes`."""
        self._results[key] = result
        self._num_used += _size(result)
        while len(self._results) > self.num_results or self._num_used > self.num_bytes:
            _, oldest = self._results.popitem(last=False)
            self._num_used -= _size(oldest)


def _size(result: Any) -> int:
    return int(getattr(result, "nbytes", 0))
