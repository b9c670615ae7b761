"""URLs: their fsspec file systems, reading one object, and error codes for the exceptions of back ends.

Covered: s3, gs, hf, az and memory through their back ends, which find their own credentials.
Not covered: http and https (`decode/http`); writing; chained URLs of fsspec (`zip::s3://...`), which may end in a local
file.
"""

from __future__ import annotations

import contextlib
import errno
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from blip2cap.errors import ImageError, InputError

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_BACK_ENDS = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "memory": "fsspec",
}
"""Scheme -> package of its back end."""
_IN_EXTRA = ("s3fs", "gcsfs")

TIMEOUT_S = 60.0
"""Longest time to read one object, in seconds."""


def scheme(path: str) -> str:
    """Return the scheme of a URL in lower case, "" for a path."""
    found = _URL.match(path)
    return found[1].lower() if found else ""


def is_http(path: str) -> bool:
    """Return whether a path is read from a web server."""
    return scheme(path) in ("http", "https")


def host(url: str) -> str:
    """Return scheme and host of a URL, or scheme and bucket, without user and password."""
    return re.sub(r"^([^:]*://)(?:[^/?#]*@)?([^/?#]*).*", r"\1\2", url, flags=re.DOTALL)


def without_password(url: str) -> str:
    """Remove user and password from a URL, which becomes the name of a row."""
    return re.sub(r"^([a-zA-Z][a-zA-Z0-9+.-]*://)[^/?#]*@", r"\1", url) if is_http(url) else url


def shown(text: str) -> str:
    """Remove secrets from the URLs in a message: user, password, and the query, which may hold a signature."""
    text = re.sub(r"(https?://)[^\s/?#]*@", r"\1", text, flags=re.IGNORECASE)
    return re.sub(r"(https?://[^\s?#]*)\?[^\s#]*", r"\1?...", text, flags=re.IGNORECASE)


def seconds_until(retry_after: str) -> float:
    """Return the seconds that a header Retry-After asks for: a number, or a date; 0 for anything else."""
    with contextlib.suppress(ValueError):
        seconds = float(retry_after)
        return seconds if 0 <= seconds < float("inf") else 0.0
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # no date, or one without a time zone
        return 0.0


def connect(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path in it. Raises InputError if there is no back end for it."""
    import fsspec

    name = scheme(url)
    if name not in _BACK_ENDS:
        known = ", ".join(f"{each}://" for each in _BACK_ENDS)
        raise InputError(
            f"{shown(url)}: {name}:// is not supported. Expected {known} or, with --allow-http, http(s)://."
        )
    try:
        # A cache of listings would grow with the number of images.
        system = fsspec.filesystem(name, use_listings_cache=False)
    except ImportError as error:
        package = '"blip2cap[remote]"' if _BACK_ENDS[name] in _IN_EXTRA else _BACK_ENDS[name]
        raise InputError(f"{url}: {name}:// needs a back end. Run: pip install {package}") from error
    return system, system._strip_protocol(url)


def explain(error: Exception) -> tuple[str, str]:
    """Convert an exception of a back end, each of which has its own, to a code of `records.FAILURES` and a detail."""
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return "vanished", "no such object"
        case TimeoutError():
            return "timeout", f"not read within {TIMEOUT_S:g} s"
        case PermissionError():
            return "permission", "no permission to read it"
    name = type(error).__name__
    if "Credentials" in name or "Forbidden" in name:
        return "permission", f"no permission to read it: {shown(str(error))}"
    busy = isinstance(error, OSError) and error.errno == errno.EBUSY  # s3fs: the store asks for fewer requests
    if busy or any(word in name for word in ("Timeout", "Connect", "Disconnected")):
        return "unreachable", f"no answer: {name}: {shown(str(error))}"
    return "unreadable", f"cannot be read: {name}: {shown(str(error))}"


def read(url: str, num_bytes: int | None, max_bytes: int) -> bytes:
    """Read one object, whose size is `num_bytes` if that is known. Raises ImageError."""
    try:
        system, path = connect(url)
        if num_bytes is None:
            num_bytes = int(system.info(path)["size"] or 0)
        check_size(num_bytes, max_bytes)
        if num_bytes == 0:
            return b""
        limit = {"timeout": TIMEOUT_S} if system.async_impl else {}
        data: bytes = system.cat_file(path, start=0, end=num_bytes, **limit)
        return data
    except ImageError:
        raise
    except InputError as error:
        raise ImageError("unsupported", error.message) from error
    except Exception as error:  # back ends have their own exceptions, botocore's are not even OSErrors
        raise ImageError(*explain(error)) from error


def check_size(num_bytes: int, max_bytes: int) -> None:
    """Raise ImageError for more bytes than an image may have."""
    if num_bytes > max_bytes:
        raise ImageError("too_large", f"{num_bytes:,} bytes is more than {max_bytes:,}")
