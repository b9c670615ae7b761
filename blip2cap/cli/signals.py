"""Ctrl-C and SIGTERM: the first finishes the batch, the second ends the process at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a signal has asked the run to end."""

    def __init__(self) -> None:
        self.signal = 0

    @property
    def exit_code(self) -> int:
        """As shells say it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal


@contextmanager
def stop_on_signal(*, quiet: bool = False) -> Iterator[Stop]:
    """Take the signals over while a run is under way; whatever handled them before is put back."""
    stop = Stop()

    def first(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        if not quiet:
            # Not by way of sys.stderr: a handler may come in the middle of a write to it.
            os.write(2, b"\nStopping after this batch; once more stops at once.\n")

    # What a script has told its background jobs to ignore stays ignored.
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, first) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
