"""Signals that stop a command: at once before the first row, after the current batch later; a second signal kills.

Covered: Ctrl-C, SIGTERM, SIGHUP (the terminal was closed), SIGUSR1 (sent by clusters before they end a job).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_SAME_S = 0.5
"""A second signal within this time counts as the first one: `timeout` signals a process and then its group; when a
terminal closes, both the kernel and the shell may send one."""
_GRACE_S = 10.0
"""Time limit for stopping at once: a library that downloads in threads may wait an hour for them."""


class Stopped(BaseException):
    """A signal has stopped the command. Not an Exception: libraries would handle it as one of their errors."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
        """As shells report it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 138 after SIGUSR1."""


class Stop:
    """The signal that has asked the command to stop, if any."""

    def __init__(self) -> None:
        self.signal = 0
        """Number of the signal; 0 for none."""
        self.at_once = True
        """True: a signal raises Stopped, wherever the command is. False: it is only noted."""

    @property
    def exit_code(self) -> int:
        """Exit code of a stopped command."""
        return Stopped(self.signal).exit_code

    def only_note(self) -> None:
        """From now on only note a signal, so that the run stops after its batch. Raises Stopped if there was one."""
        self.at_once = False
        if self.signal:  # a library may have caught what the handler raised
            raise Stopped(self.signal)


@contextmanager
def stop_on_signal(*, quiet: bool = False) -> Iterator[Stop]:
    """Handle the signals while a command runs; restore the previous handlers at the end.

    The first signal raises Stopped, or is only noted, see `Stop`. A later one has its default effect: it kills.
    """
    stop, noted, process = Stop(), 0.0, os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if stop.signal:
            if time.monotonic() - noted > _SAME_S:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        stop.signal, noted = number, time.monotonic()
        if not quiet and os.getpid() == process:  # Ctrl-C reaches processes that decode too, which a fork has made
            when = "" if stop.at_once else " after this batch"
            # Not through sys.stderr: the handler may interrupt a write to it. The terminal may be closed.
            with suppress(OSError):
                os.write(2, f"\nStopping{when}; a second signal stops at once.\n".encode())
        if stop.at_once:
            before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda number, frame: os._exit(stop.exit_code))
            timer[:] = signal.setitimer(signal.ITIMER_REAL, _GRACE_S)
            raise Stopped(number)

    # Signals that a script or nohup has set to be ignored stay ignored.
    handled = [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before: dict[signal.Signals, Any] = {}
    timer: list[float] = []
    try:
        for each in handled:
            before[each] = signal.signal(each, handle)
        yield stop
    finally:
        if timer:
            signal.setitimer(signal.ITIMER_REAL, *timer)
        for each, handler in before.items():
            signal.signal(each, handler)
