"""The requests of a run as they come, read in a thread, with the bytes that only this process can read."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from blip2cap.engine.read_ahead import HeldBytes, SharedTrace
from blip2cap.errors import Blip2CapError, ImageError
from blip2cap.records import Held, ImageRef
from blip2cap.tasks.base import Request

_JOIN_S = 0.5


class End:
    """The last event of a feed: no request follows. `error` is what the requests have raised."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Feed:
    """Reads requests in a thread and puts them into `events`, at most `num_ahead` at once; to be closed.

    `give_back` says that a request was handed on, `forget` that its rows have been written.
    """

    def __init__(
        self, requests: Iterable[Request], trace: SharedTrace, events: queue.SimpleQueue[Any], num_ahead: int
    ) -> None:
        self.trace = trace
        self._requests, self._events = requests, events
        self._room, self._closed, self._held = threading.Semaphore(num_ahead), threading.Event(), HeldBytes()
        # A daemon: it may wait forever for a pipe, and the process must be able to exit.
        self._thread = threading.Thread(target=self._read, name="source", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            iterator = iter(self._requests)
            while self._room.acquire() and not self._closed.is_set():
                request = next(iterator)
                ref = _with_bytes(request.ref)
                if not self._held.add(ref.num_held):
                    break
                self._events.put((self, replace(request, ref=ref)))
        except StopIteration:
            pass
        except BaseException as problem:
            error = problem
        self._events.put((self, End(error)))

    def give_back(self, num_requests: int) -> None:
        """Let the thread read on."""
        for _ in range(num_requests):
            self._room.release()

    def forget(self, ref: ImageRef) -> None:
        """Release the bytes of an image."""
        self._held.remove(ref.num_held)

    def close(self) -> None:
        """End the thread; one that waits for a pipe is abandoned."""
        self._closed.set()
        self._room.release()
        self._held.close()
        self._thread.join(_JOIN_S)


def _with_bytes(ref: ImageRef) -> ImageRef:
    """Return a reference that another process can read: bytes instead of a function that loads them."""
    if ref.load is None:
        return ref
    try:
        data = ref.load()
    except ImageError as error:
        return replace(ref, load=None, error=error.code, detail=error.detail)
    except Blip2CapError:
        raise
    except Exception as error:
        return replace(ref, load=None, error="decoder_crashed", detail=f"{type(error).__name__}: {error}")
    return replace(ref, load=Held(data), num_held=len(data))
