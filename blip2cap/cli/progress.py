"""Progress of a run: a bar on a terminal, a plain line every 30 seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, Protocol

from blip2cap.cli.terminal import lost_terminal, say
from blip2cap.jobs.job import Count

_LINE_EVERY_S = 30.0
_PATIENCE_S = 1.0
"""Longest time, in seconds, that a finished run waits for the counting thread: a remote folder may hang."""


class Progress(Protocol):
    """Display that a run updates after every batch."""

    def update(self, num_images: int, num_failed: int) -> None:
        """Show the number of images that this run has processed, and of rows that failed."""

    def workers(self, num_alive: int) -> None:
        """Show the number of processes that make rows."""

    def say(self, text: str) -> None:
        """Print one line to stderr without damaging the display."""

    def close(self) -> None:
        """Remove the display."""


class Bar:
    """A tqdm bar. A thread counts the images; until it has finished, the bar has no total."""

    def __init__(self, count: Count | None) -> None:
        from tqdm import tqdm

        class Quiet(tqdm):
            monitor_interval = 0  # no monitor thread: it would outlive the run, and miniters=1 does not need it

        self.bar: Any = Quiet(unit=" images", file=sys.stderr, dynamic_ncols=True, smoothing=0.1, miniters=1)
        self._shown: dict[str, int] = {}
        """Counts beside the bar."""
        self._closed = threading.Event()
        self._counter = None if count is None else threading.Thread(target=self._count, args=(count,), daemon=True)
        if self._counter is not None:
            self._counter.start()

    def update(self, num_images: int, num_failed: int) -> None:
        """Move the bar."""
        if num_failed:
            self._shown["failed"] = num_failed
        self.bar.set_postfix(self._shown, refresh=False)
        self.bar.update(num_images - self.bar.n)

    def workers(self, num_alive: int) -> None:
        """Show the number of processes beside the bar."""
        self._shown["workers"] = num_alive

    def say(self, text: str) -> None:
        """Print above the bar."""
        with lost_terminal():
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """End the line of the bar, and the counting."""
        self._closed.set()
        if self._counter is not None:
            self._counter.join(_PATIENCE_S)
        self.bar.close()

    def _count(self, count: Count) -> None:
        total = count(self._closed.is_set)
        if not self._closed.is_set():
            self.bar.total = total
            self.bar.refresh()


class Silent:
    """No progress, for --quiet."""

    def update(self, num_images: int, num_failed: int) -> None:
        """Do nothing."""

    def workers(self, num_alive: int) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Print one line."""
        say(text)

    def close(self) -> None:
        """Do nothing: there is no display."""


class Lines(Silent):
    """A line every 30 seconds, for logs."""

    def __init__(self) -> None:
        self.started = self.printed = time.monotonic()
        self._workers = ""

    def update(self, num_images: int, num_failed: int) -> None:
        """Print a line if the last one is old enough."""
        now = time.monotonic()
        if now - self.printed >= _LINE_EVERY_S:
            self.printed = now
            rate = num_images / (now - self.started)
            say(f"{num_images} images done, {num_failed} failed, {rate:.1f} images/s{self._workers}")

    def workers(self, num_alive: int) -> None:
        """Name the number of processes in the next line."""
        self._workers = f", {num_alive} workers"


def choose_progress(*, quiet: bool, rows_on_terminal: bool, count: Count | None) -> Progress:
    """Choose by the kind of stderr. `count` is None if the images cannot be counted beforehand."""
    if quiet:
        return Silent()
    return Bar(count) if sys.stderr is not None and sys.stderr.isatty() and not rows_on_terminal else Lines()
