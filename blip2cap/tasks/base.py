"""The interface of a task: the rows of an image, the prompts for the model, the columns of the answer."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from blip2cap.models.base import Checkpoint, Family, Session
from blip2cap.records import ImageRef
from blip2cap.rows import Row, Schema, row_key

WITHOUT_CAPTION = "without_caption"
"""Reason for which images without labels are skipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One image with its missing rows."""

    ref: ImageRef
    labels: tuple[str | None, ...]
    """Values of the schema's key column, one for each row; (None,) where an image has one row."""

    @property
    def keys(self) -> Iterator[str]:
        """Keys of these rows."""
        return (row_key(*self.ref.names, label) for label in self.labels)


class Task(Protocol):
    """A task with its options."""

    @property
    def name(self) -> str:
        """Name of the command; a setting of the output."""

    @property
    def schema(self) -> Schema:
        """Columns of the rows."""

    @property
    def labels(self) -> Sequence[str | None] | None:
        """Values of the schema's key column, one for each row of an image; (None,) where there is one row.

        None: they depend on the image.
        """

    def labels_of(self, ref: ImageRef) -> Sequence[str | None]:
        """Return the labels of one image; those of all, or, where they depend on the image, its own or none."""

    def labels_settings(self) -> dict[str, Any]:
        """Return settings of a folder of parts that tell which labels its images have, where these depend on them."""

    def no_labels(self, example: str) -> str:
        """Return the message that no image has labels; `example` is the name of one, "" if that is not known."""

    @property
    def deterministic(self) -> bool:
        """True if equal images have equal results, so that one result is enough."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that change a result and are known without a model, as JSON values."""

    def model_settings(self) -> dict[str, Any]:
        """Return the settings that the model's family decides; before `for_checkpoint`, only those that were given."""

    def for_checkpoint(self, checkpoint: Checkpoint, family: Family) -> Self:
        """Return the task with what a model decides. Raises UsageError if its family cannot do it."""

    def check(self, model: Any) -> None:
        """Raise UsageError for options that a loaded model does not support."""

    def start(self, model: Any, *, capacity: int | None) -> Session:
        """Open a session of the model; None lets the model choose its capacity."""

    def prompt(self, ref: ImageRef, label: str | None) -> str:
        """Return the prompt for an image."""

    def finish(self, result: Any) -> Any:
        """Apply the rules that change a result."""

    def row(self, ref: ImageRef, label: str | None, result: Any, *, width: int, height: int) -> Row:
        """Make the row of a finished result, or of the ImageError in its place."""


class SameLabels:
    """A base of tasks whose labels are the same for every image."""

    __slots__ = ()

    @property
    def labels(self) -> Sequence[str | None]:
        """Return the labels."""
        raise NotImplementedError

    def labels_of(self, ref: ImageRef) -> Sequence[str | None]:
        """Return the labels of all images."""
        return self.labels

    def labels_settings(self) -> dict[str, Any]:
        """Return nothing: the labels themselves are a setting of every folder of parts."""
        return {}

    def no_labels(self, example: str) -> str:
        """Every image has labels."""
        raise AssertionError(f"{example} has labels")


class Labelled(Protocol):
    """A source of the labels of images: a task, or a part of a plan. See `Task`."""

    @property
    def labels(self) -> Sequence[str | None] | None:
        """Labels of every image; None: they depend on the image."""

    def labels_of(self, ref: ImageRef) -> Sequence[str | None]:
        """Return the labels of one image."""


class Worklist:
    """Turns images into requests and counts them."""

    def __init__(self, labelled: Labelled) -> None:
        self.labelled = labelled
        self.num_images = 0
        """Number of images with labels so far."""
        self.num_finished = 0
        """Number of rows of these images that are finished."""
        self.num_without_labels = 0
        """Number of other images, which have no rows."""

    def requests(self, refs: Iterable[ImageRef], finished: Container[str]) -> Iterator[Request]:
        """Yield one request for each image with missing rows, in the order of `refs`."""
        self.num_images = self.num_finished = self.num_without_labels = 0
        labels = self.labelled.labels
        labels_of = None if labels is not None else self.labelled.labels_of  # not asked a million times for the same
        for ref in refs:
            if labels_of is not None:
                labels = labels_of(ref)
                if not labels:
                    self.num_without_labels += 1
                    continue
            assert labels is not None
            self.num_images += 1
            file_name, file_name_b64 = ref.names
            missing = [label for label in labels if row_key(file_name, file_name_b64, label) not in finished]
            self.num_finished += len(labels) - len(missing)
            if missing:
                yield Request(ref=ref, labels=tuple(missing))
