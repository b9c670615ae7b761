"""Exceptions of Pillow -> ImageError; the only place where they are converted."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from blip2cap.decode.formats import formats
from blip2cap.decode.truncation import is_truncated
from blip2cap.errors import ImageError

_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


@contextmanager
def our_errors(data: bytes) -> Iterator[None]:
    """Convert the exceptions that Pillow raises for these bytes to ImageError; MemoryError passes."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except NotImplementedError as error:
        raise ImageError("unsupported", str(error)) from error
    except EOFError as error:
        raise ImageError("truncated", str(error) or "the file ends too early") from error
    except (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, RuntimeError, struct.error) as error:
        raise ImageError(_code_of(str(error).lower(), data), str(error) or type(error).__name__) from error


def _code_of(message: str, data: bytes) -> str:
    if "out of memory" in message:  # the message of a codec in C
        return "out_of_memory"
    return "truncated" if "truncated" in message or is_truncated(data) else "corrupt"


def _unidentified(data: bytes) -> ImageError:
    if not data:
        return ImageError("truncated", "the file is empty")
    is_heic = data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS
    if is_heic and "HEIF" not in formats():
        return ImageError("unsupported", 'HEIC needs an extra: pip install "blip2cap[heif]"')
    if is_truncated(data):
        return ImageError("truncated", "the file ends before its image does")
    if is_heic:
        return ImageError("corrupt", "the HEIC file is damaged")
    return ImageError("not_an_image", "its content is not a supported image format")
