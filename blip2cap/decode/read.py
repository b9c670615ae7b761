"""ImageRef -> the bytes of its file."""

from __future__ import annotations

import os
import stat

from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef


def read(ref: ImageRef, options: DecodeOptions) -> bytes:
    """Read the file of one input.

    Raises ImageError: vanished, permission, not_regular, too_large, corrupt (unreadable).
    """
    try:
        # A FIFO would block open() for ever; devices and sockets are no images either.
        status = os.stat(ref.path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not_regular", "not a regular file")
        if status.st_size > options.max_bytes:
            raise ImageError("too_large", f"{status.st_size:,} bytes is more than {options.max_bytes:,}")
        with open(ref.path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("vanished", "no such file") from error
    except PermissionError as error:
        raise ImageError("permission", "no permission to read it") from error
    except (OSError, ValueError) as error:
        raise ImageError("corrupt", f"cannot be read: {error}") from error
