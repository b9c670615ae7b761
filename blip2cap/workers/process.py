"""One worker as its parent sees it: a process, what it has been given, and what it says.

Two threads write to it and read from it, so that one that hangs holds nobody up.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import IO, TYPE_CHECKING, Any

from blip2cap.decode.child import Child
from blip2cap.workers.messages import Broken

if TYPE_CHECKING:
    from blip2cap.workers.messages import Ready, Setup

PROGRAM = "from blip2cap.workers.program import main; main()"
_FATAL = "Fatal Python error"
"""Start of the line before the stack of a process that a signal ends."""
_JOIN_S = 1.0


class Gone:
    """The last event of a process: it has ended."""


class WorkerProcess:
    """A worker process; to be closed. What it sends goes into `events`, each with the worker itself.

    Raises OSError if it cannot be started.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        number: int,
        environment: Mapping[str, str],
        events: queue.SimpleQueue[Any],
    ) -> None:
        self.number = number
        """Number of the process in the run; one that replaces another has a new one."""
        self.ready: Ready | None = None
        """Its message that the model is loaded; None before."""
        self.given: dict[int, None] = {}
        """Numbers of the images that it has, the oldest first."""
        self.num_lists = 0
        """Number of lists of images that it has not begun."""
        self.told_last = False
        """True if it does not wait for more images."""
        self.num_done = 0
        """Number of images it has made rows of."""
        self.heard_at = time.monotonic()
        """When it sent something, or was given its first image, last."""
        self._events = events
        self._child = Child(PROGRAM, environment=environment)
        self._connection: Connection[Any, Any] = Connection(self._child.socket.detach())
        self._outbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._said = ""
        self._threads = [
            threading.Thread(target=target, name=f"worker {number}", daemon=True)
            for target in (self._write, self._read, self._listen)
        ]
        for thread in self._threads:
            thread.start()
        self.send(setup)

    def send(self, message: object) -> None:
        """Queue a message for it."""
        self._outbox.put(message)

    def _write(self) -> None:
        while (message := self._outbox.get()) is not Gone:
            try:
                self._connection.send(message)
            except OSError:
                return  # the reading thread notices that it has ended
            except Exception as error:
                self._events.put((self, Broken(None, f"{type(error).__name__}: {error}")))
                return

    def _read(self) -> None:
        while True:
            try:
                self._events.put((self, self._connection.recv()))
            except Exception:  # of a message that is damaged too
                self._events.put((self, Gone()))
                return

    def _listen(self) -> None:
        """Keep the last line of its stderr, or the one before the stack; it would block if nobody read them."""
        stderr: IO[bytes] | None = self._child.process.stderr
        assert stderr is not None
        with stderr:
            for line in stderr:
                text = line.decode(errors="replace").strip()
                if text and not self._said.startswith(_FATAL):
                    self._said = text

    def how_it_ended(self) -> str:
        """Return how the process ended, as the end of a sentence, with what it said last on its stderr."""
        ended = self._child.how_it_ended() or "closed its connection"
        self._threads[-1].join(_JOIN_S)
        return f"{ended} ({self._said})" if self._said else ended

    def kill(self) -> None:
        """Kill the process."""
        self._child.kill()

    def close(self) -> None:
        """Kill the process and release its resources."""
        self._child.end()
        self._outbox.put(Gone)
        for thread in self._threads:
            thread.join(_JOIN_S)
        self._connection.close()
