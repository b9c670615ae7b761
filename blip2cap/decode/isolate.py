"""Decoding in separate processes: a crash, a hang or too much memory there costs one image.

This process reads files, and resizes where it is faster at that; the worker, `decode/worker.py`, handles the untrusted
data. Its responses are checked, as a malicious file may have taken it over. Workers are new processes, never forked:
this process may use a GPU.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from blip2cap.decode.child import Child
from blip2cap.decode.image import Decoded, Resizer, Unpacked, finish
from blip2cap.decode.resized import decoded_as, size_within
from blip2cap.decode.threads import limit_myself
from blip2cap.decode.worker import ANSWER, MOST_DETAIL, REQUEST
from blip2cap.errors import ImageError, UsageError
from blip2cap.options import DecodeOptions
from blip2cap.records import FAILURES

PROGRAM = "from blip2cap.decode.worker import main; main()"
_START_S = 60.0
"""Time limit for a worker to start and import, in seconds; generous, for machines under load."""
_LEAST_S = 1.0
"""Minimum time for decoding, in seconds, however long reading took: the run may have been paused between the two."""
_MOST_JSON = 1 << 20
_ENVIRONMENT = {
    # Each thread takes address space, which is limited; and there are many workers.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}


class Isolation:
    """Pool of workers, one for each thread that decodes; to be closed."""

    def __init__(self, options: DecodeOptions, size: int, resizer: Resizer | None) -> None:
        self.options, self.size, self.resizer = options, size, resizer
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._closed = False

    def decode(self, data: bytes, *, read_s: float = 0.0) -> Decoded:
        """Do the same as `image.decode`, with the same pixels. Raises ImageError, also if a worker crashes or hangs.

        `read_s` is the part of the time limit that reading took. Raises UsageError if no worker can be started.
        """
        return finish(self._request(data, read_s, side=self.size), self.size, self.resizer)

    def decode_within(self, data: bytes, max_pixels: int, *, read_s: float = 0.0) -> Decoded:
        """Do the same as `resized.decode_within`. Raises like decode()."""
        return decoded_as(self._request(data, read_s, max_pixels=max_pixels))

    def read_header(self, data: bytes, *, read_s: float = 0.0) -> Unpacked:
        """Do the same as `image.read_header`. Raises like decode()."""
        return self._request(data, read_s)

    def _request(self, data: bytes, read_s: float, *, side: int = 0, max_pixels: int = 0) -> Unpacked:
        limit_myself()  # starting a process may take long, which is no fault of the image
        worker = self._take()
        try:
            timeout_s = max(_LEAST_S, self.options.timeout_s - read_s)
            image = worker.unpack(data, timeout_s, side=side, max_pixels=max_pixels)
        except ImageError as error:
            # After these errors a worker is dead or in an unknown state.
            self._give_back(worker, fit=error.code not in ("decoder_crashed", "timeout", "out_of_memory"))
            raise
        except BaseException:
            self._give_back(worker, fit=False)
            raise
        self._give_back(worker, fit=True)
        return image

    def _take(self) -> _Worker:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker(PROGRAM, self.options, to_square=self.resizer is None)
        with self._lock:
            self._busy.add(worker)
            if self._closed:
                worker.kill()  # the image is not needed any more
        return worker

    def _give_back(self, worker: _Worker, *, fit: bool) -> None:
        with self._lock:
            self._busy.remove(worker)
            if fit and not self._closed:
                self._idle.append(worker)
                return
        worker.end()

    def close(self) -> None:
        """End the workers; images in flight fail."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.kill()  # the thread that waits for it ends it
        for worker in idle:
            worker.end()


class _Worker:
    """One process, and the socket to it."""

    def __init__(self, program: str, options: DecodeOptions, *, to_square: bool) -> None:
        self._max_pixels, self._to_square = options.max_pixels, to_square or options.mode == "exact"
        settings = json.dumps({**asdict(options), "to_square": to_square})
        try:
            self._child = Child(program, settings, environment=_ENVIRONMENT)
        except OSError as error:
            raise _not_started(error.strerror or str(error)) from error
        assert self._child.process.stderr is not None
        with self._child.process.stderr as stderr:
            try:
                self._read_json(time.monotonic() + _START_S)
            except (OSError, ValueError) as error:
                self.end()
                said = stderr.read().decode(errors="replace").strip().splitlines()
                raise _not_started(said[-1] if said else str(error)) from error

    def unpack(self, data: bytes, timeout_s: float, *, side: int, max_pixels: int) -> Unpacked:
        """Request one image in a form, as `worker.REQUEST` says. Raises ImageError."""
        try:
            deadline = time.monotonic() + timeout_s
            self._child.socket.settimeout(timeout_s)
            self._child.socket.sendall(REQUEST.pack(side, max_pixels, len(data)))
            self._child.socket.sendall(data)
            answer = self._read_json(deadline)
            if "error" in answer:
                raise _error(answer)
            if max_pixels:
                width, height, shape = _sizes_within(answer, max_pixels, self._max_pixels)
            else:
                width, height, shape = _sizes(answer, side, self._max_pixels, to_square=self._to_square)
            pixels_HWC = np.empty(shape, dtype=np.uint8)
            self._read_into(pixels_HWC.reshape(-1).data, deadline)
            return Unpacked(pixels_HWC=pixels_HWC, width=width, height=height)
        except TimeoutError as error:
            raise ImageError("timeout", f"it takes more than {timeout_s:g} s to decode") from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            ended = self._child.how_it_ended() or "sent no valid response"
            raise ImageError("decoder_crashed", f"the process that decoded it {ended}") from error

    def _read_json(self, deadline: float) -> dict[str, Any]:
        head = bytearray(ANSWER.size)
        self._read_into(memoryview(head), deadline)
        (length,) = ANSWER.unpack(head)
        if length > _MOST_JSON:
            raise ValueError(f"an answer of {length} bytes")
        content = bytearray(length)
        self._read_into(memoryview(content), deadline)
        answer: dict[str, Any] = json.loads(content)
        return answer

    def _read_into(self, view: memoryview, deadline: float) -> None:
        """Fill a buffer by the deadline; a limit for each read would let single bytes arrive for ever."""
        deadline = max(deadline, time.monotonic() + _LEAST_S)
        while view:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._child.socket.settimeout(left_s)
            num_read = self._child.socket.recv_into(view)
            if num_read == 0:
                raise ConnectionResetError("the other side has closed the socket")
            view = view[num_read:]

    def kill(self) -> None:
        """Kill the process."""
        self._child.kill()

    def end(self) -> None:
        """Kill the process and release its resources."""
        self._child.end()


def _error(answer: dict[str, Any]) -> ImageError:
    """Return the error that a worker reports. Raises ValueError or TypeError for a malformed one."""
    code, detail = answer["error"], answer["detail"]
    if code not in FAILURES or not isinstance(detail, str) or len(detail) > MOST_DETAIL:
        raise ValueError("no error of ours")
    return ImageError(code, detail)


def _sizes(answer: dict[str, Any], size: int, max_pixels: int, *, to_square: bool) -> tuple[int, int, list[int]]:
    """Return width, height and the shape of the pixels that follow. Raises ValueError or TypeError if impossible."""
    width, height, (rows, columns, channels) = _size(answer, max_pixels)
    # Before resizing, it is at least the square and at most the image: a JPEG may be decoded at a reduced size.
    is_unresized = not to_square and size <= rows <= height and size <= columns <= width
    if channels != 3 or not (is_unresized or rows == columns == size):
        raise ValueError("no shape of its pixels")
    return width, height, [rows, columns, channels]


def _sizes_within(answer: dict[str, Any], within: int, max_pixels: int) -> tuple[int, int, list[int]]:
    """Do the same for an image within a number of pixels, whose size follows from that of the image."""
    width, height, shape = _size(answer, max_pixels)
    columns, rows = size_within(width, height, within)
    if shape != [rows, columns, 3]:
        raise ValueError("no shape of its pixels")
    return width, height, shape


def _size(answer: dict[str, Any], max_pixels: int) -> tuple[int, int, list[int]]:
    """Return width, height and shape of an answer: three integers, and a size of an image. Raises like _sizes()."""
    width, height, shape = answer["width"], answer["height"], answer["shape"]
    # By type: True is an int as well.
    if type(shape) is not list or any(type(each) is not int for each in (width, height, *shape)):
        raise TypeError("not integers")
    if width <= 0 or height <= 0 or width * height > max_pixels:
        raise ValueError("no size of an image")
    if len(shape) != 3:
        raise ValueError("not three axes")
    return width, height, shape


def _not_started(why: str) -> UsageError:
    return UsageError(f"no process could be started to decode in: {why}. Use fewer --threads, or leave --isolate out.")
