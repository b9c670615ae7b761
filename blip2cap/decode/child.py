"""Python processes that this one starts, each with a socket to it, and that end when this one does.

They are new processes, never forked: this process may use a GPU and threads. Used for decoding alone
(`decode/isolate.py`) and for the workers of a run (`workers/`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

_END_S = 1.0
"""Longest time, in seconds, to wait for a process that was killed: it may be blocked in the kernel."""


class Child:
    """A process that runs `program`, Python code that calls `connect`; to be ended. Raises OSError."""

    def __init__(self, program: str, *arguments: str, environment: Mapping[str, str]) -> None:
        self.socket, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        # With the import path of this process, like multiprocessing: nothing is imported from the current folder, which
        # may hold any file, unless this process does so too.
        code = f"import sys; sys.path[:] = {sys.path!r}; {program}"
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(theirs.fileno()), str(lifeline), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(), lifeline),
                env=os.environ | environment,
                process_group=0,  # no signals from the terminal
            )
        except OSError:
            self.socket.close()
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(lifeline)

    def how_it_ended(self) -> str | None:
        """Return how the process ended, as the end of a sentence; None if it runs, a second later still."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(_END_S)
            return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return None

    def kill(self) -> None:
        """Kill the process."""
        self.process.kill()

    def end(self) -> None:
        """Kill the process and release its resources, but for its stderr."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)
        self.socket.close()
        os.close(self._lifeline)


def connect() -> tuple[socket.socket, list[str]]:
    """In such a process: return its socket and its arguments; from here on it ends with its parent."""
    _end_with_parent(int(sys.argv[2]))
    return socket.socket(fileno=int(sys.argv[1])), sys.argv[3:]


def _end_with_parent(lifeline: int) -> None:
    """Let the kernel end this process when the other end of a pipe is closed, whatever it does at that moment.

    SIGIO ends a process by default. Nothing is ever written to the pipe.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # the parent may ignore it
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        if os.read(lifeline, 1) == b"":  # the parent has exited already
            os._exit(0)
