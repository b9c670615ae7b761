"""A query: a text, images or both to look for, and texts that lower the score."""

from __future__ import annotations

from dataclasses import dataclass

from blip2cap.errors import UsageError
from blip2cap.records import ImageRef
from blip2cap.tasks.text import is_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One search. Raises UsageError if there is nothing to look for, or a text is empty."""

    text: str | None = None
    images: tuple[str, ...] = ()
    """Image files, which need not be in the index: an image is as near as it is to the nearest of these and of `like`.

    Together with a text, its vector is added to each of theirs: images that resemble both.
    """
    like: tuple[str, ...] = ()
    """Names of images in the index. They are not among the hits."""
    without: tuple[str, ...] = ()
    """Texts: the score of an image for the most similar of them is subtracted."""

    def __post_init__(self) -> None:
        if self.text is not None and not self.text.strip():
            raise UsageError('the query is empty: expected a text like "sunset over the sea".')
        if not all(text.strip() for text in self.without):
            raise UsageError('--not is empty: expected a text like "people".')
        for text in self.texts:
            if not is_text(text):
                raise UsageError(f"query {text!r}: not valid UTF-8.")
        if self.text is None and not self.images and not self.like:
            raise UsageError('nothing to search for: give a text like "sunset over the sea", --image or --like.')

    @property
    def label(self) -> str:
        """Name of the query in results: its text, if that is all. Valid UTF-8."""
        images = [ImageRef(path=path, name=path).file_name for path in self.images]
        wanted = " + ".join([*([] if self.text is None else [self.text]), *images, *self.like])
        return " - ".join([wanted, *self.without])

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts, which need a vector each."""
        return (*(() if self.text is None else (self.text,)), *self.without)
