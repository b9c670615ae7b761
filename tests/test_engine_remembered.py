"""Results are remembered by number and, where they are arrays, by size."""

from __future__ import annotations

import numpy as np

from blip2cap.engine.remembered import Remembered


def test_the_result_that_was_not_used_for_the_longest_time_is_forgotten() -> None:
    known = Remembered(num_results=3)
    for key in "abc":
        known.add(key, key.upper())
    assert known["a"] == "A"
    known.add("d", "D")
    assert [key in known for key in "abcd"] == [True, False, True, True]


def test_arrays_are_forgotten_by_their_size() -> None:
    known = Remembered(num_bytes=100)
    for key in range(10):
        known.add(key, np.zeros(10, np.float32))
    assert [key for key in range(10) if key in known] == [8, 9]
    known.add("large", np.zeros(1000))
    assert not any(key in known for key in (8, 9, "large"))
    known.add("small", np.zeros(10, np.float32))
    assert "small" in known
