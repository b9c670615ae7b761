"""The records that travel between stages: references to images, prompts, generated texts."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import dataclass

FAILURES = frozenset(
    {
        "not_an_image",
        "truncated",
        "corrupt",
        "too_large",
        "unsupported",
        "permission",
        "vanished",
        "not_regular",
        "decoder_crashed",
        "timeout",
        "out_of_memory",
    }
)
"""The closed set of codes in the column `error` of a failed row."""


class Held:
    """Bytes that came past in a stream. Who calls it takes them: nothing else keeps them in memory after that."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data

    def __call__(self) -> bytes:
        """Hand the bytes over, once."""
        data, self._data = self._data, None
        assert data is not None, "these bytes were taken before"
        return data


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """One image to process, and where its bytes are: a file, a URL, a part of a file, or what `load` returns."""

    path: str
    """Where to read it, as the operating system has it (surrogate escapes for undecodable bytes), or a URL."""
    name: str
    """Relative to the one input folder, with `/`, or the path as given. Unique in a run; may hold surrogates."""
    offset: int | None = None
    """Where its bytes begin in the file, for a member of an archive; None: they are the whole file."""
    num_bytes: int | None = None
    """How many there are, if the source knows."""
    load: Callable[[], bytes] | None = None
    """Returns the bytes in place of a file; may raise ImageError."""
    num_held: int = 0
    """Bytes that `load` keeps in memory until it is called."""
    error: str = ""
    """What the source knows to be wrong with it already, one of FAILURES: then it is not read."""
    detail: str = ""
    """What to tell people about that error."""

    @property
    def file_name(self) -> str:
        """The name as valid UTF-8: undecodable bytes as backslash escapes."""
        if self.name.isascii():  # most are, and a resumed run asks a million times
            return self.name
        return os.fsencode(self.name).decode("utf-8", "backslashreplace")

    @property
    def file_name_b64(self) -> str:
        """The real bytes in base64 where `file_name` holds escapes, else ""."""
        if self.name.isascii():
            return ""
        raw = os.fsencode(self.name)
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(raw).decode("ascii")
        return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One text to generate."""

    image: int
    """Index of its image in the features."""
    text: str
    name: str
    """Of the image and the question: seeds sampling, so that each has random numbers of its own."""
    question: str | None = None
    """The part of it that a person asked; None in captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """One generated text."""

    text: str
    finish_reason: str
    """stop: the model ended the text; length: it was cut at --max-new-tokens."""
    num_tokens: int
    """New tokens, without the one that ends the text."""
    flag: str = ""
    """Of the loop guard: "", retried (the second text is fine) or what is still wrong, one of `text_rules.FAULTS`."""
