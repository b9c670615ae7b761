"""The process that decodes for another one: reads requests from a socket, answers with pixels or with what is wrong.

A request is the model's size and the bytes of a file, an answer a JSON object and the pixels. Nothing is unpickled: a
decoder that strangers have taken over could send anything.

It ends with its parent, however that ends: between two images it reads the end of the socket; in the middle of one,
on Linux, a signal comes by way of a pipe whose other end only the parent holds.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import AvifImagePlugin

from blip2cap.decode.formats import formats
from blip2cap.decode.image import unpack
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions

REQUEST = struct.Struct("!IQ")
"""Size of the square, length of the file; then the file."""
ANSWER = struct.Struct("!I")
"""Length of a JSON object; then that object: {} from a worker that is ready, {error, detail}, or {width, height, shape}
before the pixels."""
MOST_DETAIL = 4000
"""Characters that are said about what is wrong."""
_BLOCK = 1 << 20


def main() -> None:
    """Answer requests until there are no more; called with the numbers of socket and pipe, and what unpack() takes."""
    requests, lifeline = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    settings = json.loads(sys.argv[3])
    to_square = settings.pop("to_square")
    options = DecodeOptions(**settings)
    _end_with_parent(lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which finishes what it has begun
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # crashes are what it is for
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the other cores have workers of their own
    formats()
    answer(requests, {})
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 2)  # from here on, what decoders print is about one image
    while head := receive(requests, REQUEST.size):
        size, num_bytes = REQUEST.unpack(head)
        data = receive(requests, num_bytes)
        _decode(requests, bytes(data), size, options, to_square=to_square)


def _decode(requests: socket.socket, data: bytes, size: int, options: DecodeOptions, *, to_square: bool) -> None:
    """Answer one request; whatever is raised is an answer too."""
    try:
        with _memory_limit(options.max_memory):
            image = unpack(data, size, options, to_square=to_square)
    except ImageError as error:
        answer(requests, {"error": error.code, "detail": error.detail[:MOST_DETAIL]})
    except MemoryError:
        detail = f"it takes more than {options.max_memory:,} bytes of memory to decode"
        answer(requests, {"error": "out_of_memory", "detail": detail})
    except Exception as error:
        answer(requests, {"error": "decoder_crashed", "detail": f"{type(error).__name__}: {error}"[:MOST_DETAIL]})
    else:
        answer(requests, {"width": image.width, "height": image.height, "shape": image.pixels_HWC.shape})
        requests.sendall(image.pixels_HWC.data)


def answer(requests: socket.socket, content: dict[str, object]) -> None:
    """Send one JSON object."""
    encoded = json.dumps(content).encode()
    requests.sendall(ANSWER.pack(len(encoded)) + encoded)


def receive(requests: socket.socket, num_bytes: int) -> bytearray:
    """Read so many bytes; none if the other side has gone."""
    data = bytearray(num_bytes)
    view = memoryview(data)
    while view:
        num_read = requests.recv_into(view, min(len(view), _BLOCK))
        if num_read == 0:
            return bytearray()
        view = view[num_read:]
    return data


def _end_with_parent(lifeline: int) -> None:
    """Have the kernel end this process when the other end of a pipe is closed, whatever it is doing then.

    SIGIO, by default, ends a process. Nothing is ever written to the pipe.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # the parent may ignore it
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        if os.read(lifeline, 1) == b"":  # it has gone before anybody listened
            os._exit(0)


@contextmanager
def _memory_limit(num_bytes: int) -> Iterator[None]:
    """Let this process map so much more than it has now, where the system can count that."""
    try:
        statm = Path("/proc/self/statm").read_text(encoding="ascii")
    except FileNotFoundError:  # macOS, which heeds no such limit anyway
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
