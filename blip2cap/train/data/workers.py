"""Processes of data loaders that only the process of the training ends: a signal to all of them is meant for it.

Covered: signals to a process group or to every process of a job, and a training that is killed. Linux only.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import parent_process
from multiprocessing.context import ForkContext, ForkProcess

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that stop a training: those that the command handles."""
_CHECK_S = 0.5
"""Longest time that a process stays after the training was killed, and with it the lock of RUN. torch takes 5 s."""


class _Worker(ForkProcess):
    # Ignoring the signals in a worker would not be enough: one may come before it does, and torch installs a handler of
    # SIGTERM that ends the worker. A worker that ends by a signal ends the training.
    def start(self) -> None:
        """Fork with STOPPING blocked, from the first instruction on."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            super().start()  # the new process never returns from here
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        """Work; exit when the training has ended, or terminates this process."""
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        super().run()


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    while os.getppid() == parent.pid:
        received = signal.sigtimedwait([signal.SIGTERM], _CHECK_S)
        if received and received.si_pid == parent.pid:
            break
    os._exit(0)  # as with torch's handler: another code would be an error of the training


class WorkerContext(ForkContext):
    """The `multiprocessing_context` of a data loader whose processes ignore STOPPING and end when this process ends."""

    Process = _Worker
