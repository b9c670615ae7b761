"""Which formats Pillow may try, and what it takes to have its decoders keep quiet."""

from __future__ import annotations

import contextlib
import ctypes
import logging
from functools import cache

from PIL import _imaging

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What Pillow may try, decided by content. MPO files arrive through JPEG."""


@cache
def formats() -> tuple[str, ...]:
    """Return what Pillow may try: FORMATS, and HEIF if pillow-heif is installed."""
    _silence_decoders()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return FORMATS
    register_heif_opener()
    return (*FORMATS, "HEIF")


def _silence_decoders() -> None:
    """Have nothing printed about a damaged file: its row says what is wrong with it.

    libtiff prints on descriptor 2, from C, a line for every bad scan line. Its handlers are settings of the whole
    process, but of the copy of libtiff that Pillow has loaded: nobody else uses that.
    """
    pillow = ctypes.CDLL(_imaging.__file__)  # what it is linked with is found through it
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        with contextlib.suppress(AttributeError):  # a Pillow without libtiff
            setter = getattr(pillow, name)
            setter.argtypes, setter.restype = (ctypes.c_void_p,), ctypes.c_void_p
            setter(None)
    # Without any handler, logging would print Pillow's errors by itself; one that the caller has set gets them still.
    logging.getLogger("PIL").addHandler(logging.NullHandler())
