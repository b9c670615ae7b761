"""Tar archives for tests: good ones, and headers that lie."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ZEROS = bytes(tarfile.BLOCKSIZE)


def make_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    """Write a tar with these files, in order."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def member(name: str, data: bytes = b"", **attributes: Any) -> bytes:
    """Return one member of an archive; its header states what the test gives."""
    return header(name, size=len(data), **attributes) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def header(name: str, *, size: int, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """Return one header block, whatever size it claims."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def pax(records: Mapping[str, str | bytes]) -> bytes:
    """Return an extended header for the member after it."""
    body = b""
    for key, value in records.items():
        rest = b" " + key.encode() + b"=" + (value if isinstance(value, bytes) else value.encode()) + b"\n"
        length = len(rest) + 1
        while length != len(str(length)) + len(rest):
            length = len(str(length)) + len(rest)
        body += str(length).encode() + rest
    return member("pax", body, kind=tarfile.XHDTYPE)
