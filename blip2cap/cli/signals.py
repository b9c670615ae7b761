"""Signals that ask a command to end: at once before the first row, after the batch from then on; a second one kills.

Covered: Ctrl-C, SIGTERM, SIGHUP (the terminal was closed), SIGUSR1 (clusters send it before they end a job).
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
"""What comes so soon is the first once more: `timeout` signals a process and then its group, a terminal that closes
may be told by the kernel and by the shell."""
_GRACE_S = 10.0
"""How long an end at once may take: a library that downloads in threads waits for them, maybe for an hour."""


class Stopped(BaseException):
    """A signal has ended the command. No Exception: libraries would take it for an error of theirs and go on."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
        """As shells say it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 138 after SIGUSR1."""


class Stop:
    """Whether a signal has asked the command to end."""

    def __init__(self) -> None:
        self.signal = 0
        self.at_once = True
        """Whether a signal raises Stopped wherever the command is; else it is only noted."""

    @property
    def exit_code(self) -> int:
        """What a command that was stopped ends with."""
        return Stopped(self.signal).exit_code

    def only_note(self) -> None:
        """From now on only note a signal, for the run to end after its batch. Raises Stopped if there was one."""
        self.at_once = False
        if self.signal:  # a library may have swallowed what the handler raised
            raise Stopped(self.signal)


@contextmanager
def stop_on_signal(*, quiet: bool = False) -> Iterator[Stop]:
    """Take the signals over while a command is under way; whatever handled them before is put back.

    The first raises Stopped, or is only noted, as `Stop` says; one that comes later has its usual effect: it kills.
    """
    stop, noted = Stop(), 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if stop.signal:
            if time.monotonic() - noted > _SAME_S:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        stop.signal, noted = number, time.monotonic()
        if not quiet:
            when = "" if stop.at_once else " after this batch"
            # Not by way of sys.stderr: a handler may come in the middle of a write to it. The terminal may have gone.
            with suppress(OSError):
                os.write(2, f"\nStopping{when}; once more stops at once.\n".encode())
        if stop.at_once:
            before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda number, frame: os._exit(stop.exit_code))
            timer[:] = signal.setitimer(signal.ITIMER_REAL, _GRACE_S)
            raise Stopped(number)

    # What a script has told its background jobs to ignore, or nohup, stays ignored.
    heeded = [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before: dict[signal.Signals, Any] = {}
    timer: list[float] = []
    try:
        for each in heeded:
            before[each] = signal.signal(each, handle)
        yield stop
    finally:
        if timer:
            signal.setitimer(signal.ITIMER_REAL, *timer)
        for each, handler in before.items():
            signal.signal(each, handler)
