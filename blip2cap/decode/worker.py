"""A process that decodes for its parent: reads requests from a socket, responds with pixels or an error.

A request is a form and the bytes of a file, a response a JSON object and the pixels. Nothing is unpickled: a decoder
that a malicious file has taken over could send anything.

It exits when its parent does, for whatever reason: between two images it reads the end of the socket; during one, on
Linux, it gets a signal (`decode/child.py`).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import AvifImagePlugin

from blip2cap.decode.child import connect
from blip2cap.decode.formats import formats
from blip2cap.decode.image import Unpacked, read_header, unpack
from blip2cap.decode.resized import unpack_within
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions

REQUEST = struct.Struct("!IQQ")
"""Side of a square; or 0 and a number of pixels to stay within; both 0 to read the header only. Then the length of the
file, and the file."""
ANSWER = struct.Struct("!I")
"""Length of a JSON object; then that object: {} from a worker that is ready, {error, detail}, or {width, height, shape}
before the pixels."""
MOST_DETAIL = 4000
"""Maximum length of the detail of an error, in characters."""
_BLOCK = 1 << 20


def main() -> None:
    """Serve requests until the socket ends. The argument: settings as JSON."""
    requests, (arguments,) = connect()
    settings = json.loads(arguments)
    to_square = settings.pop("to_square")
    options = DecodeOptions(**settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which completes the images in flight
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # crashes are expected here
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the other cores have their own workers
    formats()
    answer(requests, {})
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 2)  # what decoders print from here on is about one image
    while head := receive(requests, REQUEST.size):
        side, max_pixels, num_bytes = REQUEST.unpack(head)
        data = receive(requests, num_bytes)
        if side:
            unpack_it = partial(unpack, bytes(data), side, options, to_square=to_square)
        elif max_pixels:
            unpack_it = partial(unpack_within, bytes(data), max_pixels, options)
        else:
            unpack_it = partial(read_header, bytes(data), options)
        _respond(requests, unpack_it, options.max_memory)


def _respond(requests: socket.socket, unpack_it: Callable[[], Unpacked], max_memory: int) -> None:
    """Respond to one request; any exception is a response too."""
    try:
        with _memory_limit(max_memory):
            image = unpack_it()
    except ImageError as error:
        answer(requests, {"error": error.code, "detail": error.detail[:MOST_DETAIL]})
    except MemoryError:
        detail = f"it takes more than {max_memory:,} bytes of memory to decode"
        answer(requests, {"error": "out_of_memory", "detail": detail})
    except Exception as error:
        answer(requests, {"error": "decoder_crashed", "detail": f"{type(error).__name__}: {error}"[:MOST_DETAIL]})
    else:
        pixels_HWC = np.ascontiguousarray(image.pixels_HWC[:, :, :3])
        answer(requests, {"width": image.width, "height": image.height, "shape": pixels_HWC.shape})
        requests.sendall(pixels_HWC.data)


def answer(requests: socket.socket, content: dict[str, object]) -> None:
    """Send one JSON object."""
    encoded = json.dumps(content).encode()
    requests.sendall(ANSWER.pack(len(encoded)) + encoded)


def receive(requests: socket.socket, num_bytes: int) -> bytearray:
    """Read `num_bytes`; return b"" if the other side has closed the socket."""
    data = bytearray(num_bytes)
    view = memoryview(data)
    while view:
        num_read = requests.recv_into(view, min(len(view), _BLOCK))
        if num_read == 0:
            return bytearray()
        view = view[num_read:]
    return data


@contextmanager
def _memory_limit(num_bytes: int) -> Iterator[None]:
    """Limit the memory that this process may map to `num_bytes` more than now, where the system counts it."""
    try:
        statm = Path("/proc/self/statm").read_text(encoding="ascii")
    except FileNotFoundError:  # macOS, which does not enforce such limits anyway
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(statm.split()[0]) * resource.getpagesize() + num_bytes
    allowed = [each for each in (limit, soft, hard) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(allowed), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
