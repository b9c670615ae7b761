"""Compares the images of the inputs with those of an index: by size and time, then by the hash of their bytes."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field

from blip2cap import urls
from blip2cap.decode.read import read
from blip2cap.errors import ImageError
from blip2cap.index.images import DIGEST_BYTES, Image
from blip2cap.index.known import Known
from blip2cap.options import DecodeOptions
from blip2cap.records import ImageRef
from blip2cap.rows import row_key
from blip2cap.source.inputs import Source
from blip2cap.source.walk import UNREAD_PARTS
from blip2cap.tasks.text import is_text

UNREAD = ("vanished", "permission", "timeout", "unreachable", "unreadable")
"""Errors of an image that could not be read: they say nothing about its content, which may still be as it was."""


@dataclass(kw_only=True, slots=True)
class Changes:
    """The work of an update."""

    planned: list[Image] = field(default_factory=list)
    """New and changed images, in the order of the inputs."""
    num_new: int = 0
    """Number of them that the index does not have."""
    num_unchanged: int = 0
    gone: list[str] = field(default_factory=list)
    """Keys of the images to remove."""
    num_kept: int = 0
    """Number of images that were not found, but are kept."""
    num_unread: int = 0
    """Number of images with an embedding that could not be read, and are kept."""
    skipped: dict[str, int] = field(default_factory=Counter)
    damaged: tuple[str, ...] = ()
    num_images: int = 0
    """Number of images among the inputs."""


def digest(data: bytes) -> bytes:
    """Return the hash of an image's bytes."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def find_changes(source: Source, known: Known, decode: DecodeOptions, *, retry_failed: bool) -> Changes:
    """Walk the inputs and compare; files whose time is new but whose content is not are noted in `known`.

    Images that were not found are gone, unless a folder or an archive could not be read or `--limit` ended the walk.
    An image behind a URL, whose size and time are unknown, is taken as unchanged. An image with an embedding that
    cannot be read now is kept.
    """
    changes, signatures = Changes(), _Signatures()
    seen = bytearray(known.starts[-1])
    stream = source.stream()
    for ref in stream:
        changes.num_images += 1
        file_name, file_name_b64 = ref.names
        signature = signatures.of(ref)
        number = known.numbers.get(row_key(file_name, file_name_b64, None))
        if number is not None:
            seen[number] = True
            try:
                unchanged = _is_unchanged(ref, number, signature, known, decode)
            except ImageError as error:
                if not known.failed[number] and error.code in UNREAD:
                    changes.num_unread += 1
                    continue
                unchanged = False  # it becomes a failed image, with this reason
            if unchanged and not (retry_failed and known.failed[number]):
                changes.num_unchanged += 1
                continue
        changes.num_new += number is None
        changes.planned.append(
            Image(
                file_name=file_name,
                file_name_b64=file_name_b64,
                path=os.fsencode(stored_path(ref, source)),
                num_bytes=signature[0],
                mtime_ns=signature[1],
            )
        )
    changes.skipped, changes.damaged = dict(stream.skipped), tuple(stream.damaged)
    gone = [key for key, number in known.numbers.items() if not seen[number]]
    if (
        source.options.limit is not None
        or changes.damaged
        or any(changes.skipped.get(reason) for reason in UNREAD_PARTS)
    ):
        changes.num_kept = len(gone)
    else:
        changes.gone = gone
    return changes


def stored_path(ref: ImageRef, source: Source) -> str:
    """Return the path of an image relative to the folder of the inputs, so that both may be moved, or else absolute."""
    root = source.root
    if urls.scheme(ref.path) or urls.scheme(root):
        return ref.path
    if source.one_folder and is_text(root) and ref.path == f"{source.inputs[0].rstrip('/')}/{ref.name}":
        return ref.name
    path = os.path.abspath(ref.path)
    return path.removeprefix(f"{root}/") if root and is_text(root) else path


class _Signatures:
    """Sizes and times of files; the members of an archive share one look."""

    def __init__(self) -> None:
        self._path, self._signature = "", (-1, 0)

    def of(self, ref: ImageRef) -> tuple[int, int]:
        """Return size and time of the file, (-1, 0) where there is none."""
        if ref.path != self._path:
            self._path, self._signature = ref.path, (-1, 0)
            if not urls.scheme(ref.path):
                try:
                    status = os.stat(ref.path)
                    self._signature = status.st_size, status.st_mtime_ns
                except (OSError, ValueError):
                    pass  # reading it fails too, and gives the reason
        return self._signature


def _is_unchanged(ref: ImageRef, number: int, signature: tuple[int, int], known: Known, decode: DecodeOptions) -> bool:
    """Return True if size and time are those in the index, or else the hash of the bytes. Raises ImageError."""
    if signature == known.signature(number):
        return True
    same = digest(read(ref, decode)) == known.digest(number)  # read also if that is b"": an error must show now
    if same:
        known.touch(number, signature)
    return same
