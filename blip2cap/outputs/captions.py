"""Captions of images by name, read from an output of this tool or a file of another one.

All are held in memory: about 220 bytes for a short caption and its name.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

from blip2cap.errors import InputError
from blip2cap.options import Kind
from blip2cap.outputs import caption_files
from blip2cap.outputs.caption_files import Listed
from blip2cap.outputs.open import exists, kind_of_existing, open_rows, read_manifest
from blip2cap.outputs.read import Results, image_name
from blip2cap.records import ImageRef
from blip2cap.source.walk import IMAGE_SUFFIXES

_FINGERPRINT_BYTES = 8


class ImageCaptions:
    """Captions of images by their names.

    Names are relative to `folder`, if that is known; else they are those of the rows of a run. An image below `folder`
    is found wherever the run starts. Any other is found by the name that it has in the run, as a copy is, unless the
    run starts above `folder`, and the caption is that of an image in `folder`.
    """

    def __init__(
        self, given: str, captions: Iterable[tuple[str, str]], *, folder: str = "", stems: bool = False
    ) -> None:
        self.given, self.folder = given, os.path.realpath(folder) if folder else ""
        self.stems = stems
        """True if names have no suffix of an image."""
        self.num_captions = 0
        self._captions: dict[str, str | tuple[str, ...]] = {}
        self._has_absolute = False
        self._hash = 0
        for name, caption in captions:
            if caption := caption.strip():
                self._add(_normal(name), caption)

    def _add(self, name: str, caption: str) -> None:
        existing = self._captions.get(name)
        captions = (existing,) if isinstance(existing, str) else existing or ()
        if caption in captions:
            return
        self._captions[name] = (*captions, caption) if captions else caption
        self.num_captions += 1
        self._has_absolute |= os.path.isabs(name)
        digest = hashlib.blake2b(os.fsencode(f"{name}\0") + caption.encode(), digest_size=_FINGERPRINT_BYTES)
        self._hash += int.from_bytes(digest.digest())  # a sum: the order of the captions does not matter

    @property
    def fingerprint(self) -> str:
        """Hash of all names and captions."""
        return f"{self._hash % (1 << 8 * _FINGERPRINT_BYTES):016x}"

    def of(self, ref: ImageRef) -> Sequence[str]:
        """Return the captions of an image, each once; none if it has none."""
        for name in self._names(ref):
            if found := self._lookup(name):
                return (found,) if isinstance(found, str) else found
        return ()

    def _names(self, ref: ImageRef) -> Iterator[str]:
        """Yield the names that the captions of an image may have."""
        if "://" in ref.path:
            yield ref.name
            return
        folder, base = os.path.split(ref.path)
        is_file = os.path.basename(ref.name) == base  # not a member of an archive
        real_path = os.path.join(_real_folder(folder), base) if is_file else ""
        root = _root(ref)
        if self.folder:
            below = f"{self.folder.rstrip('/')}/"
            for path in (_normal(os.path.join(root, ref.name)), real_path):
                if path.startswith(below):
                    yield path[len(below) :]
        if not (self.folder and root and _overlap(self.folder, root) and self._is_of_another(ref.name)):
            yield ref.name
        if is_file and self._has_absolute:
            yield real_path
            yield os.path.abspath(ref.path)

    def _is_of_another(self, name: str) -> bool:
        """Return whether `folder` holds an image of that name, whose caption it is."""
        return os.path.lexists(os.path.join(self.folder, name))

    def _lookup(self, name: str) -> str | tuple[str, ...] | None:
        name = _normal(name)
        found = self._captions.get(name)
        if found is None and self.stems:
            stem, suffix = os.path.splitext(name)
            found = self._captions.get(stem) if suffix.lower() in IMAGE_SUFFIXES else None
        return found

    def no_caption(self, example: str) -> str:
        """Return the message that no image has a caption; `example` is the name of an image, "" if not known."""
        named = next(iter(self._captions))
        images = f", the run's are like {_shown(example)}" if example else ""
        return (
            f"--captions {self.given}: no image of this run has a caption there. Its {self.num_captions} captions are "
            f"of images like {_shown(named)}{images}. Expected the names that rows have: relative to the single INPUT "
            "folder, or as given."
        )


def read_captions(given: str) -> ImageCaptions:
    """Read captions: an output of blip2cap, COCO, kohya, text files beside images, imagefolder, CSV.

    Raises InputError if it cannot be read, is none of these, or holds no caption; OutputRefusedError for damaged rows.
    """
    if not (given == "-" or "://" in given or exists(given)):
        raise InputError(f"--captions {given}: no such file or folder. Paths are relative to {os.getcwd()}.")
    try:
        is_there = os.path.isfile(given) or os.path.isdir(given)  # anything else, such as a pipe, has rows
        listed = (caption_files.open_file(given) if is_there else None) or _own_rows(given)
        captions = ImageCaptions(given, listed.captions, folder=listed.folder, stems=listed.stems)
    except InputError as error:
        raise InputError(f"--captions {error.message}") from error
    if not captions.num_captions:
        raise InputError(f"--captions {given}: has no caption. {caption_files.EXPECTED}")
    return captions


def _own_rows(given: str) -> Listed:
    """Open an output of blip2cap."""
    rows = open_rows(given)
    manifest = None if kind_of_existing(given) is Kind.STREAM else read_manifest(given)
    folder = str(manifest.settings.get("input_root", "")) if manifest else ""
    return Listed(captions=_captions_of(given, rows), folder=folder)


def _captions_of(given: str, rows: Results) -> Iterator[tuple[str, str]]:
    for row in rows:
        if "text" not in row.columns:
            kind = "answers" if row.question is not None else "vectors"
            raise InputError(f"{given}: its rows are {kind}. {caption_files.EXPECTED}")
        if row.status == "ok":
            yield from ((image_name(row), text) for text in row.texts or (row.text,))


def _root(ref: ImageRef) -> str:
    """Return the real path of the folder that the name of an image is relative to; "" if the name is absolute."""
    if os.path.isabs(ref.name):
        return ""
    return _real_folder(ref.path.removesuffix(ref.name)) if ref.path.endswith(f"/{ref.name}") else _real_folder("")


def _overlap(path: str, other: str) -> bool:
    """Return whether one of two real paths of folders is the other one, or above it."""
    return os.path.commonpath((path, other)) in (path, other)


@functools.lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _normal(name: str) -> str:
    return os.path.normpath(name) if "./" in name or "//" in name else name


def _shown(name: str) -> str:
    return f'"{os.fsencode(name).decode("utf-8", "backslashreplace")}"'
