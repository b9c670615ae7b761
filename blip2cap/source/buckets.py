"""Remote folders -> ImageRef, level by level in byte order of the names, like a local walk.

The listing of one level is in memory as a whole: for a hundred million objects in one folder use `--files-from`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from blip2cap import urls
from blip2cap.errors import InputError
from blip2cap.records import ImageRef
from blip2cap.source.walk import ARCHIVE_SUFFIXES, SYSTEM_FOLDERS

_NUM_THREADS = 16
"""Number of objects looked up at once."""


def look_up(urls: list[str]) -> dict[str, str]:
    """Return `file` or `directory` for each URL. Raises InputError for one that does not exist.

    Web servers are not asked: their URLs are files.
    """
    if not urls:
        return {}
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="look_up") as pool:
        return dict(zip(urls, pool.map(_kind, urls), strict=True))


def _kind(url: str) -> str:
    if urls.is_http(url):
        return "file"
    system, path = urls.connect(url)
    try:
        return str(system.info(path)["type"])
    except Exception as error:  # back ends have their own exceptions
        code, detail = urls.explain(error)
        if code == "vanished":
            detail = "no such object, and no folder with anything in it"
        raise InputError(f"{urls.shown(url)}: {detail}. Check the URL, and that your credentials reach it.") from error


def open_url(url: str) -> Any:
    """Open an object for random access; it is read ahead in large blocks."""
    system, path = urls.connect(url)
    return system.open(path, "rb", cache_type="readahead")


def walk(url: str, prefix: str, suffixes: frozenset[str], skipped: Counter[str]) -> Iterator[ImageRef]:
    """Yield the images below a remote folder."""
    system, path = urls.connect(url)
    origin = url[: len(url) - len(url.split("://", 1)[1])]
    yield from _walk(system, path.rstrip("/"), prefix, origin, suffixes, skipped)


def _walk(
    system: Any, folder: str, prefix: str, origin: str, suffixes: frozenset[str], skipped: Counter[str]
) -> Iterator[ImageRef]:
    try:
        entries = system.ls(folder, detail=True)
    except Exception:  # back ends have their own exceptions
        skipped["unreadable_folder"] += 1
        return
    for entry in sorted(entries, key=lambda entry: os.fsencode(entry["name"])):
        path = entry["name"].rstrip("/")
        name = path.rsplit("/", 1)[-1]
        if path.strip("/") == folder.strip("/"):
            continue  # an object that represents the folder itself
        if name.startswith("."):
            skipped["hidden"] += 1
        elif entry["type"] == "directory" and name in SYSTEM_FOLDERS:
            skipped["system_folder"] += 1
        elif entry["type"] == "directory":
            yield from _walk(system, path, f"{prefix}{name}/", origin, suffixes, skipped)
        elif os.path.splitext(name)[1].lower() not in suffixes:
            skipped["archive" if name.lower().endswith(ARCHIVE_SUFFIXES) else "other_suffix"] += 1
        else:
            yield ImageRef(path=f"{origin}{path.lstrip('/')}", name=f"{prefix}{name}", num_bytes=entry["size"])
