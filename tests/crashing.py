"""A Pillow that misbehaves like bad decoders, chosen by the width of a picture: for processes that tests start.

`python -m tests.crashing caption ...` is blip2cap with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from tests.pictures import encode, photo

SEGFAULT, KILLED, EXIT, HANG, HANG_WITH_LOCK, EAT_MEMORY, PRINT, NONSENSE = range(13, 21)
"""Widths."""
DRIP = 200
"""A width: an endless answer, a byte now and then."""
ANSWERS: dict[int, bytes] = {
    201: b'{"width": "evil", "height": -5, "shape": [32, 32, 3]}',
    202: b'{"width": 202, "height": 24, "shape": [1000000, 1000000, 3]}',
    203: b'{"error": "evil", "detail": ""}',
    204: b'{"error": "corrupt", "detail": "' + b"x" * 100_000 + b'"}',
    205: b"[" * 100_000,
}
"""Width -> answer of a decoder that an attacker controls."""
_LONG_S = 3600
PROGRAM = "from tests.crashing import be_a_worker; be_a_worker()"
NEVER_READ = "never_read.png"
"""Name of a file whose read() never returns."""


def picture(width: int) -> bytes:
    """Make a good picture of a width."""
    return encode(photo(width, 24), "PNG")


def misbehave() -> None:
    """Take the place of Image.open in this process."""
    opened = Image.open

    def bad_open(*args: Any, **settings: Any) -> Image.Image:
        image = opened(*args, **settings)
        _do(image.width)
        return image

    Image.open = bad_open  # type: ignore[assignment]


def _do(width: int) -> None:
    if width == SEGFAULT:
        ctypes.string_at(0)  # in this thread, as a decoder would
    elif width == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    elif width == EXIT:
        os._exit(7)
    elif width == HANG:
        time.sleep(_LONG_S)
    elif width == HANG_WITH_LOCK:
        ctypes.PyDLL(None).sleep(_LONG_S)
    elif width == EAT_MEMORY:
        bytearray(1 << 42)
    elif width == PRINT:
        os.write(1, b"something for stdout\n")
        os.write(2, b"something for stderr\n")
    elif width == NONSENSE:
        os.write(int(sys.argv[1]), b"\0\0\0\x03[1]" * 99)
    elif width == DRIP:
        os.write(int(sys.argv[1]), b"\0\x01\0\0")
        while True:
            os.write(int(sys.argv[1]), b" ")
            time.sleep(0.05)
    elif width in ANSWERS:
        answer = ANSWERS[width]
        with os.fdopen(os.dup(int(sys.argv[1])), "wb") as file:
            file.write(len(answer).to_bytes(4) + answer)


def be_a_worker() -> None:
    """Decode for another process."""
    from blip2cap.decode.worker import main

    misbehave()
    main()


def be_blip2cap() -> None:
    """Run a command, whose workers misbehave too."""
    from blip2cap.cli import app
    from blip2cap.decode import isolate
    from blip2cap.decode.read import read
    from blip2cap.engine import read_ahead

    misbehave()
    isolate.PROGRAM = PROGRAM

    def slow_read(ref: ImageRef, options: DecodeOptions) -> bytes:
        if Path(ref.path).name == NEVER_READ:
            threading.Event().wait()
        return read(ref, options)

    read_ahead.read = slow_read  # type: ignore[attr-defined]
    app()


if __name__ == "__main__":
    be_blip2cap()
