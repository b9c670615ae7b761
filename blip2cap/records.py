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
        "unreachable",
        "unreadable",
        "not_regular",
        "decoder_crashed",
        "timeout",
        "out_of_memory",
        "no_answer",
        "refused",
    }
)
"""All codes that the column `error` of a failed row can hold."""


class Held:
    """Bytes from a stream. A call returns them and releases them, so that they do not stay in memory."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data

    def __call__(self) -> bytes:
        """Return the bytes; can be called only once."""
        data, self._data = self._data, None
        assert data is not None, "the bytes were already taken"
        return data


# Nobody changes one; but a frozen dataclass takes three times as long to make, which a walk does a million times.
@dataclass(kw_only=True, slots=True, unsafe_hash=True)
class ImageRef:
    """One image to process, and the place of its bytes: a file, a URL, a section of a file, or a function."""

    path: str
    """Path of the file (undecodable bytes as surrogate escapes), or a URL."""
    name: str
    """Path relative to the single input folder, with `/`, or as given. Unique in a run; may hold surrogates."""
    offset: int | None = None
    """Position of the first byte in the file, for a member of an archive; None: the whole file."""
    num_bytes: int | None = None
    """Number of bytes, if the source knows it."""
    load: Callable[[], bytes] | None = None
    """Function that returns the bytes, instead of a file; may raise ImageError."""
    num_held: int = 0
    """Number of bytes that `load` keeps in memory until it is called."""
    error: str = ""
    """Error that the source has already found, one of FAILURES; then the image is not read."""
    detail: str = ""
    """Explanation of that error for users."""

    @property
    def names(self) -> tuple[str, str]:
        """`file_name` and `file_name_b64`."""
        if self.name.isascii():  # a fast path for most names: a resumed run may ask a million times
            return self.name, ""
        raw = os.fsencode(self.name)
        try:
            return raw.decode("utf-8"), ""
        except UnicodeDecodeError:
            return raw.decode("utf-8", "backslashreplace"), base64.b64encode(raw).decode("ascii")

    @property
    def file_name(self) -> str:
        """The name as valid UTF-8: undecodable bytes as backslash escapes."""
        return self.names[0]

    @property
    def file_name_b64(self) -> str:
        """Bytes of the name in base64 if `file_name` holds escapes, else ""."""
        return self.names[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A question in a conversation, and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One text to generate, or to compare with an image."""

    image: int
    """Index of its image in the features."""
    text: str
    """Text that is continued or answered, or that is compared with the image; "" where there is none."""
    name: str
    """Name of the image and the question: it seeds sampling, so that each prompt has its own random numbers."""
    question: str | None = None
    """Question in the text, as the user gave it; None in captions."""
    turns: tuple[Turn, ...] = ()
    """Earlier questions about the image and their answers, for a conversation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchScore:
    """Scores of a text for an image."""

    itm: float
    """Probability that they belong together, by the match head, from 0 to 1."""
    itc: float
    """Cosine of the text's vector and the nearest of the image's query vectors, from -1 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """One generated text."""

    text: str
    finish_reason: str
    """stop: the model ended the text; length: --max-new-tokens ended it."""
    num_tokens: int
    """Number of generated tokens, without the one that ends the text."""
    num_prompt_tokens: int | None = None
    """Number of tokens of prompt and image, where a server has counted them."""
    flag: str = ""
    """Verdict of the loop guard: "", retried (the second text is good), or a remaining fault, one of `FAULTS`."""
