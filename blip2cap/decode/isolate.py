"""Decoding in processes of their own: what crashes, hangs or eats memory there costs one image.

The parent reads files and resizes where it can do that faster; the worker, `decode/worker.py`, does all that reads what
strangers have written. Its answers are checked, as a file may have taken it over. Workers are started afresh, never
forked: this process may hold a GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from blip2cap.decode.image import Decoded, Resizer, Unpacked, finish
from blip2cap.decode.worker import ANSWER, MOST_DETAIL, REQUEST
from blip2cap.errors import ImageError, UsageError
from blip2cap.options import DecodeOptions
from blip2cap.records import FAILURES

PROGRAM = "from blip2cap.decode.worker import main; main()"
_START_S = 60.0
"""How long a worker may take to import what it needs, on a machine that does much else."""
_LEAST_S = 1.0
"""What decoding gets however long reading took: between the two, the whole run may have been stopped."""
_MOST_JSON = 1 << 20
_ENVIRONMENT = {
    # Threads would each take address space from the limit. A worker is one of many as it is.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}


class Isolation:
    """Workers, as many as threads decode at a time; to be closed."""

    def __init__(self, options: DecodeOptions, size: int, resizer: Resizer | None) -> None:
        self.options, self.size, self.resizer = options, size, resizer
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._closed = False

    def decode(self, data: bytes, *, read_s: float = 0.0) -> Decoded:
        """Do what `image.decode` does, with the same pixels. Raises ImageError, also for what ends or stops a worker.

        `read_s` is the part of the time limit that reading took. Raises UsageError if no worker can be started.
        """
        worker = self._take()
        try:
            image = worker.decode(data, self.size, max(_LEAST_S, self.options.timeout_s - read_s))
        except ImageError as error:
            # After these, a worker is dead, or not as it was.
            self._give_back(worker, fit=error.code not in ("decoder_crashed", "timeout", "out_of_memory"))
            raise
        except BaseException:
            self._give_back(worker, fit=False)
            raise
        self._give_back(worker, fit=True)
        return finish(image, self.size, self.resizer)

    def _take(self) -> _Worker:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker(PROGRAM, self.options, to_square=self.resizer is None)
        with self._lock:
            self._busy.add(worker)
            if self._closed:
                worker.kill()  # nobody wants to know any more
        return worker

    def _give_back(self, worker: _Worker, *, fit: bool) -> None:
        with self._lock:
            self._busy.remove(worker)
            if fit and not self._closed:
                self._idle.append(worker)
                return
        worker.end()

    def close(self) -> None:
        """End the workers; an image that one is about fails."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.kill()  # the thread that waits for it does the rest
        for worker in idle:
            worker.end()


class _Worker:
    """One process, and the socket to it."""

    def __init__(self, program: str, options: DecodeOptions, *, to_square: bool) -> None:
        self._max_pixels, self._to_square = options.max_pixels, to_square or options.mode == "exact"
        self._socket, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        settings = json.dumps({**asdict(options), "to_square": to_square})
        # With the path of this process, as multiprocessing does it: nothing is imported from the current folder, which
        # may hold anything, unless this process does so too.
        code = f"import sys; sys.path[:] = {sys.path!r}; {program}"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(theirs.fileno()), str(lifeline), settings],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(), lifeline),
                env=os.environ | _ENVIRONMENT,
                process_group=0,  # signals from the terminal are not for it
            )
        except OSError as error:
            self._socket.close()
            os.close(self._lifeline)
            raise _not_started(error.strerror or str(error)) from error
        finally:
            theirs.close()
            os.close(lifeline)
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            try:
                self._read_json(time.monotonic() + _START_S)
            except (OSError, ValueError) as error:
                self.end()
                said = stderr.read().decode(errors="replace").strip().splitlines()
                raise _not_started(said[-1] if said else str(error)) from error

    def decode(self, data: bytes, size: int, timeout_s: float) -> Unpacked:
        """Have one image decoded. Raises ImageError."""
        try:
            deadline = time.monotonic() + timeout_s
            self._socket.settimeout(timeout_s)
            self._socket.sendall(REQUEST.pack(size, len(data)))
            self._socket.sendall(data)
            answer = self._read_json(deadline)
            if "error" in answer:
                raise _error(answer)
            width, height, shape = _sizes(answer, size, self._max_pixels, to_square=self._to_square)
            pixels_HWC = np.empty(shape, dtype=np.uint8)
            self._read_into(pixels_HWC.data.cast("B"), deadline)
            return Unpacked(pixels_HWC=pixels_HWC, width=width, height=height)
        except TimeoutError as error:
            raise ImageError("timeout", f"it takes more than {timeout_s:g} s to decode") from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ImageError("decoder_crashed", f"the process that decoded it {self._how_it_ended()}") from error

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
        """Fill a buffer by the deadline, which holds for all of it: a byte now and then would come for ever."""
        deadline = max(deadline, time.monotonic() + _LEAST_S)
        while view:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            num_read = self._socket.recv_into(view)
            if num_read == 0:
                raise ConnectionResetError("the other side has gone")
            view = view[num_read:]

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_LEAST_S)
            return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return "gave no sensible answer"

    def kill(self) -> None:
        """Have it end, whatever it does."""
        self._process.kill()

    def end(self) -> None:
        """Kill it, and let go of what belongs to it."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one in the hands of a disk that hangs
            self._process.wait(_LEAST_S)
        self._socket.close()
        os.close(self._lifeline)


def _error(answer: dict[str, Any]) -> ImageError:
    """Return what a worker says is wrong with an image. Raises ValueError or TypeError for what no worker says."""
    code, detail = answer["error"], answer["detail"]
    if code not in FAILURES or not isinstance(detail, str) or len(detail) > MOST_DETAIL:
        raise ValueError("no error of ours")
    return ImageError(code, detail)


def _sizes(answer: dict[str, Any], size: int, max_pixels: int, *, to_square: bool) -> tuple[int, int, list[int]]:
    """Return width, height and shape of the pixels to come. Raises ValueError or TypeError for what cannot be."""
    width, height, shape = answer["width"], answer["height"], answer["shape"]
    rows, columns, channels = shape
    # By type: True is an int as well.
    if any(type(each) is not int or each <= 0 for each in (width, height, *shape)) or width * height > max_pixels:
        raise ValueError("no size of a picture")
    # Not made the square here, it is at least as large, and no larger than the picture: a JPEG may come reduced.
    is_picture = not to_square and size <= rows <= height and size <= columns <= width
    if channels != 3 or not (is_picture or rows == columns == size):
        raise ValueError("no shape of its pixels")
    return width, height, shape


def _not_started(why: str) -> UsageError:
    return UsageError(f"no process could be started to decode in: {why}. Use fewer --threads, or leave --isolate out.")
