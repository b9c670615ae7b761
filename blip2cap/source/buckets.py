"""Remote folders -> ImageRef, level by level in the order of the names' bytes, as a local walk has it.

One level is listed at a time, and is in memory as a whole: a hundred million objects in one folder need a list of
their own, `--files-from`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from blip2cap import urls
from blip2cap.errors import InputError
from blip2cap.records import ImageRef

_NUM_LOOKED_UP = 16
"""Objects that are looked for at a time."""


def look_up(urls: list[str]) -> dict[str, str]:
    """Return for each URL whether it is a `file` or a `directory`. Raises InputError for one that is neither.

    Web servers are not asked.
    """
    if not urls:
        return {}
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_NUM_LOOKED_UP, thread_name_prefix="look_up") as pool:
        return dict(zip(urls, pool.map(_kind, urls), strict=True))


def _kind(url: str) -> str:
    if urls.is_http(url):
        return "file"
    system, path = urls.connect(url)
    try:
        return str(system.info(path)["type"])
    except Exception as error:  # back ends have errors of their own
        code, detail = urls.say_why(error)
        if code == "vanished":
            detail = "no such object, and no folder with anything in it"
        raise InputError(f"{urls.shown(url)}: {detail}. Check the URL, and that your credentials reach it.") from error


def open_url(url: str) -> Any:
    """Open an object to be read from any place; reads ahead in large blocks."""
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
    except Exception:  # back ends have errors of their own
        skipped["unreadable_folder"] += 1
        return
    for entry in sorted(entries, key=lambda entry: os.fsencode(entry["name"])):
        path = entry["name"].rstrip("/")
        name = path.rsplit("/", 1)[-1]
        if path.strip("/") == folder.strip("/"):
            continue  # the object that stands for the folder itself
        if name.startswith("."):
            skipped["hidden"] += 1
        elif entry["type"] == "directory":
            yield from _walk(system, path, f"{prefix}{name}/", origin, suffixes, skipped)
        elif os.path.splitext(name)[1].lower() not in suffixes:
            skipped["other_suffix"] += 1
        else:
            yield ImageRef(path=f"{origin}{path.lstrip('/')}", name=f"{prefix}{name}", num_bytes=entry["size"])
