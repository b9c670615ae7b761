"""Image formats that Pillow may try, with their decoders silenced."""

from __future__ import annotations

import contextlib
import ctypes
import logging
from functools import cache

from PIL import _imaging

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Formats that Pillow may try; the content decides. MPO files are opened as JPEG."""


@cache
def formats() -> tuple[str, ...]:
    """Return FORMATS, and HEIF if pillow-heif is installed."""
    _silence_decoders()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return FORMATS
    register_heif_opener()
    return (*FORMATS, "HEIF")


def _silence_decoders() -> None:
    """Stop decoders from printing about damaged files: the row of an image says what is wrong with it.

    libtiff prints a line to descriptor 2, from C, for every bad scan line. Its handlers are settings of the whole
    process, but of the copy of libtiff that only Pillow uses.
    """
    pillow = ctypes.CDLL(_imaging.__file__)  # also finds the symbols of the libraries that it is linked with
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        with contextlib.suppress(AttributeError):  # a Pillow without libtiff
            setter = getattr(pillow, name)
            setter.argtypes, setter.restype = (ctypes.c_void_p,), ctypes.c_void_p
            setter(None)
    # Without a handler, logging would print Pillow's errors; a handler of the caller still gets them.
    logging.getLogger("PIL").addHandler(logging.NullHandler())
