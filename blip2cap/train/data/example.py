"""Examples of images with texts, problems of those that are none, and sets of both."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """An image with a caption, or with a question and its answers."""

    path: str
    """Path of the image file, or a URL."""
    name: str
    """Name of the image as its file gives it."""
    question: str | None = None
    """None: the text is a caption."""
    texts: tuple[str, ...]
    """The caption, or the answers, each once."""
    weights: tuple[float, ...] = (1.0,)
    """Share of each of the texts; their sum is 1."""
    image_id: str | None = None
    where: str
    """Place in its file: train.json:12 is line 12, train.json[11] the entry with index 11 of a list."""

    @property
    def most_common(self) -> str:
        """The text with the largest share."""
        return max(zip(self.weights, self.texts, strict=True), key=lambda pair: pair[0])[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something wrong with an example, or worth knowing about the data."""

    reason: str
    """One of `reasons.REASONS`."""
    where: str
    """Place in a file, or the name of an image."""
    detail: str = ""
    example: int | None = None
    """Index of the example that it makes useless; None if it is none yet, or if it can be used all the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Examples of one source in a set."""

    num_examples: int
    weight: float
    """Number of its examples in an epoch for each example of --data; 1 for --data itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """Examples of all files that are read together."""

    examples: tuple[Example, ...]
    columns: tuple[str, ...] = ()
    """Columns that were found in each file: "train.json: image <- file_name, text <- caption"."""
    problems: tuple[Problem, ...] = ()
    """Entries that are no examples."""
    shares: tuple[Share, ...] = ()
    """The examples of --data, then of each --mix, in their order."""
    folders: tuple[str, ...] = ()
    """Folders that names of images are relative to."""
    other_paths: tuple[str, ...] = ()
    """Images of entries that are no examples."""

    def without(self, bad: Collection[int]) -> DataSet:
        """Return the set without some examples, given their indices."""
        shares, start = [], 0
        for share in self.shares:
            indices = range(start, start + share.num_examples)
            start = indices.stop
            shares.append(replace(share, num_examples=sum(index not in bad for index in indices)))
        examples = tuple(each for index, each in enumerate(self.examples) if index not in bad)
        return replace(self, examples=examples, shares=tuple(shares))


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Training and validation examples."""

    train: DataSet
    val: DataSet | None = None
