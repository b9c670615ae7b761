"""ImageRef -> its bytes: a file, a part of a file, an object behind a URL, or bytes that its source holds."""

from __future__ import annotations

import os
import stat

from blip2cap import urls
from blip2cap.decode.hosts import HOSTS
from blip2cap.errors import ImageError
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef


def read(ref: ImageRef, options: DecodeOptions) -> bytes:
    """Read the bytes of one input.

    Raises ImageError: vanished, permission, not_regular, too_large, truncated, timeout, unreachable, unsupported,
    unreadable, and errors that the source has found already. Raises UnreachableError if its server is gone.
    """
    if ref.error:
        raise ImageError(ref.error, ref.detail)
    if ref.num_bytes is not None:
        urls.check_size(ref.num_bytes, options.max_bytes)
    if ref.load is not None:
        data = ref.load()
        urls.check_size(len(data), options.max_bytes)
        return data
    return _read_remote(ref, options) if urls.scheme(ref.path) else _read_file(ref, options)


def _read_remote(ref: ImageRef, options: DecodeOptions) -> bytes:
    """Read from a web server or a bucket. Raises UnreachableError if too many images in a row cannot be fetched."""
    host = urls.host(ref.path)
    try:
        if urls.is_http(ref.path):
            data = _read_http(ref.path, options, retry=not HOSTS.is_down(host))
        else:
            data = urls.read(ref.path, ref.num_bytes, options.max_bytes)
    except ImageError as error:
        if error.code == "unreachable":
            HOSTS.failed(host, error.detail)
        elif error.code != "timeout":
            HOSTS.answered(host)
        raise
    HOSTS.answered(host)
    return data


def _read_http(url: str, options: DecodeOptions, *, retry: bool) -> bytes:
    if not options.allow_http:
        raise ImageError("unsupported", "not fetched without --allow-http")
    try:
        from blip2cap.decode.http import shared_client
    except ImportError as error:
        raise ImageError("unsupported", 'http needs an extra: pip install "blip2cap[remote]"') from error
    return shared_client().get(url, options.max_bytes, options.timeout_s, retry=retry)


def _read_file(ref: ImageRef, options: DecodeOptions) -> bytes:
    try:
        # open() of a FIFO would block for ever; devices and sockets are no images either.
        status = os.stat(ref.path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not_regular", "not a regular file")
        if ref.offset is not None and ref.num_bytes is not None:
            if ref.offset + ref.num_bytes > status.st_size:
                raise ImageError("truncated", "the archive ends before it does")
            return _read_part(ref.path, ref.offset, ref.num_bytes)
        urls.check_size(status.st_size, options.max_bytes)
        with open(ref.path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("vanished", "no such file") from error
    except PermissionError as error:
        raise ImageError("permission", "no permission to read it") from error
    except (OSError, ValueError) as error:
        raise ImageError("unreadable", f"cannot be read: {error}") from error  # EIO says nothing about the image


def _read_part(path: str, offset: int, num_bytes: int) -> bytes:
    """Read a part of a file, with a descriptor of its own: other threads may read other parts."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        blocks = []
        while num_bytes and (block := file.read(num_bytes)):  # one read returns no more than 2 GB
            blocks.append(block)
            num_bytes -= len(block)
    if num_bytes:
        raise ImageError("truncated", "the archive ends before it does")
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)
