"""Loops over pieces of arrays on all cores: numpy releases the lock of Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")


def in_threads(work: Callable[[Piece], None], pieces: Sequence[Piece]) -> None:
    """Call `work` for every piece; what it raises goes through."""
    num_threads = min(len(pieces), os.cpu_count() or 1)
    if num_threads < 2:
        for piece in pieces:
            work(piece)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(work, pieces):
            pass
