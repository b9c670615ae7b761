"""How far a run has come: a bar on a terminal, a plain line every 30 seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from blip2cap.cli.terminal import lost_terminal, say

_LINE_EVERY_S = 30.0
_PATIENCE_S = 1.0
"""How long the end of a run waits for the walk that counts: it may hang in a folder far away."""

Count = Callable[[Callable[[], bool]], int]
"""Counts the images to do; asks now and then whether nobody wants to know any more."""


class Progress(Protocol):
    """Told after every batch."""

    def update(self, num_images: int, num_failed: int) -> None:
        """Say how many images this run has done so far, and how many rows failed."""

    def say(self, text: str) -> None:
        """Print one line to stderr, and spoil nothing."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Bar:
    """A tqdm bar; the total comes when a second walk, beside the run, has counted it."""

    def __init__(self, count: Count | None) -> None:
        from tqdm import tqdm

        class Quiet(tqdm):
            monitor_interval = 0  # a thread that would outlive the run, to correct a guess that miniters=1 leaves out

        self.bar: Any = Quiet(unit=" images", file=sys.stderr, dynamic_ncols=True, smoothing=0.1, miniters=1)
        self._closed = threading.Event()
        self._counter = None if count is None else threading.Thread(target=self._count, args=(count,), daemon=True)
        if self._counter is not None:
            self._counter.start()

    def update(self, num_images: int, num_failed: int) -> None:
        """Move the bar."""
        if num_failed:
            self.bar.set_postfix(failed=num_failed, refresh=False)
        self.bar.update(num_images - self.bar.n)

    def say(self, text: str) -> None:
        """Print above the bar."""
        with lost_terminal():
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """End the bar's line, and the walk that counts."""
        self._closed.set()
        if self._counter is not None:
            self._counter.join(_PATIENCE_S)
        self.bar.close()

    def _count(self, count: Count) -> None:
        total = count(self._closed.is_set)
        if not self._closed.is_set():
            self.bar.total = total
            self.bar.refresh()


class Lines:
    """A line now and then, for logs."""

    def __init__(self) -> None:
        self.started = self.said = time.monotonic()

    def update(self, num_images: int, num_failed: int) -> None:
        """Say it if the last line is old."""
        now = time.monotonic()
        if now - self.said >= _LINE_EVERY_S:
            self.said = now
            rate = num_images / (now - self.started)
            say(f"{num_images} images done, {num_failed} failed, {rate:.1f} images/s")

    def say(self, text: str) -> None:
        """Print it."""
        say(text)

    def close(self) -> None:
        """Nothing to end."""


class Silent:
    """For --quiet."""

    def update(self, num_images: int, num_failed: int) -> None:
        """Say nothing."""

    def say(self, text: str) -> None:
        """Print it."""
        say(text)

    def close(self) -> None:
        """Nothing to end."""


def choose_progress(*, quiet: bool, rows_on_terminal: bool, count: Count | None) -> Progress:
    """Choose by where stderr goes; `count` counts the images to do, None if they cannot be counted beforehand."""
    if quiet:
        return Silent()
    return Bar(count) if sys.stderr is not None and sys.stderr.isatty() and not rows_on_terminal else Lines()
