"""Reads and decodes images ahead of the model, in threads, in order, with a bounded number of them in memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Generic, Protocol, TypeVar

from blip2cap.batch_size import BatchSize
from blip2cap.decode.image import Decoded
from blip2cap.decode.inputs import ImageInput
from blip2cap.decode.read import read
from blip2cap.decode.threads import Call, Threads, limit_myself
from blip2cap.engine.flow import DecodedRequest
from blip2cap.errors import Blip2CapError, ImageError
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from blip2cap.tasks.base import Request

Item = TypeVar("Item")

_PATIENCE_S = 0.5
"""Longest wait, in seconds, for the next image before the batch so far is handed on."""
_BATCH_PATIENCE_S = 2.0
"""Longest time, in seconds, to fill a batch: when images come slowly, the first ones do not wait for many others."""
_MOST_HELD = 256 << 20
"""Largest number of bytes from streams that wait for the model. A larger image is held alone."""


class DecodeAhead(Generic[Item]):
    """Decodes the images of items in threads, from its creation on; to be closed.

    At most `num_ahead` images are decoded or waiting at any time, with at most 256 MB of bytes from streams; `items` is
    read no further than that, in a separate thread, so that a slow pipe delays nothing. An image that takes longer than
    `timeout_s` fails with timeout.
    """

    def __init__(
        self,
        items: Iterable[Item],
        ref_of: Callable[[Item], ImageRef],
        decode: Callable[[ImageRef], Decoded],
        *,
        num_threads: int,
        num_ahead: int,
        timeout_s: float = DecodeOptions().timeout_s,
    ) -> None:
        self._items, self._ref_of, self._decode = items, ref_of, decode
        self._timeout_s = timeout_s
        self._entries: queue.SimpleQueue[tuple[Item, Call[Decoded | ImageError]] | BaseException | None]
        self._entries = queue.SimpleQueue()
        self._room, self._closed = threading.Semaphore(num_ahead), threading.Event()
        self._held = HeldBytes()
        self._threads: Threads[Decoded | ImageError] = Threads(num_threads, "decode")
        # A daemon: it may wait forever for a pipe, and the process must be able to exit.
        self._feeder = threading.Thread(target=self._feed, name="source", daemon=True)
        self._feeder.start()

    def _feed(self) -> None:
        try:
            iterator = iter(self._items)
            while self._room.acquire() and not self._closed.is_set():
                item = next(iterator)
                ref = self._ref_of(item)
                if not self._held.add(ref.num_held):
                    return
                self._entries.put((item, self._threads.submit(partial(_guarded, self._decode, ref))))
        except StopIteration:
            self._entries.put(None)
        except BaseException as error:
            self._entries.put(error)

    def results(
        self, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[Item, Decoded | ImageError] | None]:
        """Yield every item with its decoded image or its error, in the order of the items.

        None means that the next image is not ready yet. Ends early once `stopped` returns True. Raises what the items
        raise, and errors that no image has caused.
        """
        while not stopped():
            try:
                entry = self._entries.get(timeout=_PATIENCE_S)
            except queue.Empty:
                yield None
                continue
            if entry is None:
                return
            if isinstance(entry, BaseException):
                raise entry
            item, job = entry
            patience_s = min(_PATIENCE_S, self._timeout_s)
            while not job.wait(patience_s):
                if stopped():
                    return
                self._threads.waited(patience_s, self._timeout_s, self._timeout)
                yield None
            yield item, job.result()
            self._room.release()
            self._held.remove(self._ref_of(item).num_held)

    def _timeout(self) -> ImageError:
        return ImageError("timeout", f"not decoded within {self._timeout_s:g} s: reading or decoding hangs")

    def close(self) -> None:
        """End the threads; those that wait for a pipe, or for a file that hangs, are abandoned."""
        self._closed.set()
        self._room.release()
        self._held.close()
        self._feeder.join(timeout=_PATIENCE_S)
        self._threads.close()


class HeldBytes:
    """Counts bytes in memory; adding more blocks until they fit."""

    def __init__(self) -> None:
        self.num_bytes, self.closed, self.changed = 0, False, threading.Condition()

    def add(self, num_bytes: int) -> bool:
        """Wait until the bytes fit, and count them; return False after `close`."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or not self.num_bytes or self.num_bytes + num_bytes <= _MOST_HELD)
            self.num_bytes += num_bytes
            return not self.closed

    def remove(self, num_bytes: int) -> None:
        """Release bytes."""
        with self.changed:
            self.num_bytes -= num_bytes
            self.changed.notify()

    def close(self) -> None:
        """Wake all that wait."""
        with self.changed:
            self.closed = True
            self.changed.notify()


def in_batches(items: Iterable[Item | None], size: Callable[[], int]) -> Iterator[list[Item]]:
    """Group items into lists of `size()`; a list is shorter before None (the next item is not ready) and at the end.

    An empty list means that no item is ready. No batch takes much longer to fill than `_BATCH_PATIENCE_S`.
    """
    batch: list[Item] = []
    started = time.monotonic()
    for item in items:
        if item is not None:
            batch.append(item)
        if item is None or len(batch) >= size() or time.monotonic() - started > _BATCH_PATIENCE_S:
            yield batch
            batch, started = [], time.monotonic()
    if batch:
        yield batch


def _guarded(decode: Callable[[ImageRef], Decoded], ref: ImageRef) -> Decoded | ImageError:
    """Return errors of a decoder as data: one image must not end the run."""
    try:
        return decode(ref)
    except ImageError as error:
        # A new error: the traceback of this one refers to the call that will hold it, a cycle that is collected late.
        return ImageError(error.code, error.detail)
    except Blip2CapError:
        raise  # not caused by an image
    except MemoryError:
        return ImageError("out_of_memory", "not enough memory to decode it")
    except Exception as error:
        return ImageError("decoder_crashed", f"{type(error).__name__}: {error}")


class DecodeTrace(Protocol):
    """A record of the images that are being decoded; `decode.trace.Trace` is one."""

    def suspects(self, ref: ImageRef) -> bool:
        """Return whether an earlier run died while it decoded this image."""

    def decoding(self, ref: ImageRef) -> AbstractContextManager[None]:
        """Record an image while it is decoded."""


class SharedTrace(DecodeTrace, Protocol):
    """A record into which other processes write too."""

    def slots_for(self, ref: ImageRef, process: int) -> tuple[str, int]:
        """Return the file and the first slot for images that another process decodes; each number has its own."""

    def crashed(self, process: int) -> bool:
        """Suspect the images that a process was decoding when it crashed; return True if there were any."""


class ReadAhead:
    """Reads and decodes in threads from its creation on, while the model may still be loading; to be closed.

    `size` is the number of images in a batch. With a `trace`, images that may have ended an earlier run are decoded in
    separate processes.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        options: DecodeOptions,
        image_input: ImageInput,
        size: BatchSize,
        trace: DecodeTrace | None = None,
    ) -> None:
        self.options, self.trace, self.size = options, trace, size
        self._turn = threading.Event()
        self._turn.set()
        self._decoder = image_input.open(options)
        self._ahead = DecodeAhead(
            requests,
            lambda request: request.ref,
            self._decode,
            num_threads=options.threads,
            num_ahead=2 * self.size.most + options.threads,
            timeout_s=options.timeout_s,
        )

    def _decode(self, ref: ImageRef) -> Decoded:
        started = time.monotonic()
        data = read(ref, self.options)
        read_s = time.monotonic() - started
        self._turn.wait()
        isolated = self.options.isolate or (self.trace is not None and self.trace.suspects(ref))
        if isolated:
            limit_myself()  # starting a process may take long, and the image is not to blame
        with nullcontext() if isolated or self.trace is None else self.trace.decoding(ref):
            return self._decoder.decode(data, isolated=isolated, read_s=read_s)

    def batches(self, *, on_cpu: bool, stopped: Callable[[], bool]) -> Iterator[list[DecodedRequest]]:
        """Yield batches; a short or empty one means that no more images are ready.

        A model `on_cpu` needs the same cores, so images are decoded only while the run waits for them: the threads of
        the model wait for one another at every operation, and one without a core delays all. Files are still read
        ahead.
        """
        batches = in_batches(self._ahead.results(stopped), lambda: self.size.size)
        while True:
            self._turn.set()
            batch = next(batches, None)
            if on_cpu:
                self._turn.clear()
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """End the processes and the threads."""
        self._turn.set()
        self._decoder.close()
        self._ahead.close()
