"""A worker: takes images from its parent, decodes them, runs the model, and sends rows in the same order.

Signals are for the parent alone, which says when to stop; the worker ends with it.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from blip2cap.decode.child import connect
from blip2cap.decode.trace import Slots
from blip2cap.engine.read_ahead import ReadAhead
from blip2cap.engine.run import Engine, RunStats
from blip2cap.errors import Blip2CapError, ImageError
from blip2cap.models.base import Model, dtype_name
from blip2cap.records import ImageRef
from blip2cap.rows import Row
from blip2cap.tasks.base import Request
from blip2cap.workers.messages import (
    STOP,
    Alive,
    Broken,
    Idle,
    Item,
    Ready,
    Result,
    Results,
    Said,
    Setup,
    Taken,
)

_ALIVE_S = 1.0


def main() -> None:
    """Serve the parent until its socket ends."""
    socket, _ = connect()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(each, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # as large as the model
    faulthandler.enable()
    connection = Connection(socket.detach())
    code = 0
    try:
        setup = connection.recv()
    except (EOFError, OSError):
        os._exit(1)  # the parent has gone
    try:
        Worker(connection).serve(setup)
    except Blip2CapError as error:
        connection.send(Broken(error, error.message))
    except BaseException as error:
        connection.send(Broken(None, f"{type(error).__name__}: {error}"))
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    sys.stderr.flush()
    os._exit(code)  # threads that hang, and a library's own ones, are not waited for


class Worker:
    """The side of the worker."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection, self._sending = connection, threading.Lock()
        self._lists: queue.SimpleQueue[list[Item] | str] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._alive_at = time.monotonic()
        self._num_sessions = 0

    def serve(self, setup: Setup) -> None:
        """Load the model, and make the rows of all items, until the parent closes the connection."""
        threading.Thread(target=self._receive, daemon=True).start()
        model: Model | None = None
        while True:
            first = self._lists.get()
            if isinstance(first, str):
                model = model or self._load(setup)
                self._send(Idle())
                continue
            items = _Items(self._items(first))
            image_input = setup.loader.image_input()
            size = setup.batch.images()
            with closing(ReadAhead(items.requests(), setup.decode, image_input, size, items)) as images:
                if model is None:
                    model = self._load(setup)
                self._make_rows(setup, model, items, images)
            items.close()
            self._send(Idle())

    def _receive(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                os._exit(1)
            if message == STOP:
                self._stopped.set()
            self._lists.put(message)

    def _send(self, message: object) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            os._exit(1)  # the parent has gone

    def _load(self, setup: Setup) -> Model:
        if setup.device.startswith("cuda:"):
            import torch

            torch.cuda.set_device(setup.device)  # nothing may end up on the first GPU
        model = setup.loader.load(setup.device, setup.dtype)
        setup.task.check(model)
        dtype = dtype_name(model.dtype)
        self._send(Ready(dtype=dtype, fallback_reason=model.fallback_reason, remark=model.remark))
        return model

    def _items(self, items: list[Item] | str) -> Iterator[Item]:
        """Yield the items of one list after the other, up to LAST or STOP."""
        while not isinstance(items, str):
            self._send(Taken())
            yield from items
            items = self._lists.get()

    def _make_rows(self, setup: Setup, model: Model, items: _Items, images: ReadAhead) -> None:
        engine = Engine(
            model=model,
            task=setup.task,
            decode=setup.decode,
            batch=setup.batch,
            on_failure=items.failed,
            say=self._say,
        )
        self._num_sessions += 1
        stats, before = RunStats(), RunStats()
        with closing(engine.row_batches(images, stats, self._is_stopped)) as batches:
            for rows in batches:
                self._send(
                    Results(
                        results=items.results(rows),
                        decode_s=stats.decode_s - before.decode_s,
                        model_s=stats.model_s - before.model_s,
                        batch_size=stats.batch_size,
                        capacity=stats.capacity,
                    )
                )
                before.decode_s, before.model_s = stats.decode_s, stats.model_s

    def _say(self, line: str) -> None:
        """Pass on what the first texts are like; those of a later session say nothing about the model."""
        if self._num_sessions == 1:
            self._send(Said(line))

    def _is_stopped(self) -> bool:
        """Return True if the parent wants no more; the engine asks all the time, so that the parent hears of us."""
        now = time.monotonic()
        if now - self._alive_at > _ALIVE_S:
            self._alive_at = now
            self._send(Alive())
        return self._stopped.is_set()


class _Items:
    """The items that are in the worker; the trace of its decoding threads."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._by_name: dict[str, Item] = {}
        self._in_order: deque[Item] = deque()
        self._failures: dict[str, list[tuple[str, str]]] = {}
        self._slots: dict[tuple[str, int], Slots] = {}
        self._lock = threading.Lock()

    def requests(self) -> Iterator[Request]:
        """Yield the requests of the items, as they come."""
        for item in self._items:
            self._by_name[item.request.ref.name] = item
            self._in_order.append(item)
            yield item.request

    def suspects(self, ref: ImageRef) -> bool:
        """Return whether a process died while it decoded this image."""
        return self._by_name[ref.name].suspected

    def decoding(self, ref: ImageRef) -> AbstractContextManager[None]:
        """Record an image while it is decoded."""
        place = self._by_name[ref.name].slots
        with self._lock:
            if place not in self._slots:
                self._slots[place] = Slots(Path(place[0]), place[1])
            return self._slots[place].recording(ref)

    def failed(self, ref: ImageRef, error: ImageError) -> None:
        """Keep an error, for the result of its image."""
        self._failures.setdefault(ref.name, []).append((error.code, error.detail))

    def results(self, rows: list[Row]) -> list[Result]:
        """Return the results of the oldest images, which these are all rows of."""
        results, columns = [], deque(dict(row.columns) for row in rows)
        while columns:
            item = self._in_order.popleft()
            name = item.request.ref.name
            own = [columns.popleft() for _ in item.request.labels]
            results.append(Result(item.number, own, self._failures.pop(name, ())))
            del self._by_name[name]
        self._close_unused()
        return results

    def _close_unused(self) -> None:
        """Close the files of parts that are finished: a run may have thousands."""
        with self._lock:
            used = {item.slots for item in [*self._by_name.values()]}
            for place in self._slots.keys() - used:
                self._slots.pop(place).close()

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for slots in self._slots.values():
                slots.close()
