"""The images of requests, read and decoded ahead of the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from blip2cap.decode.image import Decoded
from blip2cap.decode.inputs import ImageInput
from blip2cap.decode.read import read
from blip2cap.decode.threads import limit_myself
from blip2cap.engine.decode_ahead import DecodeAhead, in_batches
from blip2cap.engine.flow import DecodedRequest
from blip2cap.options import BatchOptions, DecodeOptions
from blip2cap.records import ImageRef
from blip2cap.tasks.base import Request


class DecodeTrace(Protocol):
    """A record of the images that are being decoded; `decode.trace.Trace` is one."""

    def suspects(self, ref: ImageRef) -> bool:
        """Return whether an earlier run died while it decoded this image."""

    def decoding(self, ref: ImageRef) -> AbstractContextManager[None]:
        """Record an image while it is decoded."""


class ReadAhead:
    """Reads and decodes in threads from its creation on, while the model may still be loading; to be closed.

    With a `trace`, images that may have ended an earlier run are decoded in separate processes.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        options: DecodeOptions,
        image_input: ImageInput,
        batch: BatchOptions,
        trace: DecodeTrace | None = None,
    ) -> None:
        self.options, self.trace = options, trace
        self.size = batch.images()
        """Number of images in a batch."""
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
